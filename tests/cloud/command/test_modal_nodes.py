"""`modal run … --nodes 2` with the real command, on a plan without clusters."""

from __future__ import annotations

import re

import pytest


@pytest.mark.slow
@pytest.mark.full
def test_a_plan_without_clusters_ends_in_one_message_before_anything_is_paid_for(make_cloud) -> None:
    cloud = make_cloud()
    file = cloud.clone / "data" / "training" / "training_config.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"^gradient_accumulation_steps: \d+", "gradient_accumulation_steps: 8", text, flags=re.M))
    assert re.search(r"^per_device_train_batch_size: 2", file.read_text(encoding="utf-8"), re.M)
    said = cloud.run("--nodes", "2", "--gpu", "H100", "--judge", "none", code=2)
    assert "--nodes 2: Modal gives no cluster here (Clusters are not available on this plan" in said
    assert "Traceback" not in said
    assert 0 < said.index("close this terminal or its lid, the run saves and stops") < said.index("  model ")
    assert re.search(r"its log:  modal app logs ap-\w+ -f$", said, re.M)
    assert not cloud.plane.tasks
    assert {app.tags.get("noesis-run") for app in cloud.plane.apps.apps.values()} == {"noesis-philosopher-v1"}
