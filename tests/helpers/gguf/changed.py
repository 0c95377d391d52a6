"""GGUF files with one thing changed."""

from __future__ import annotations

from pathlib import Path


def changed(source: Path, target: Path, metadata: dict[str, object], *, drop: str = "", extra: str = "") -> Path:
    """A copy of a GGUF file with other metadata (None: without that key), without the tensor `drop`, with one more named `extra`."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    arch = metadata.get("general.architecture", reader.fields["general.architecture"].contents())
    w = gguf.GGUFWriter(target, str(arch))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in metadata:
            continue
        kind = field.types[0]
        w.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for name, value in metadata.items():
        if value is not None and name != "general.architecture":
            kind = gguf.GGUFValueType.get_type(value)
            w.add_key_value(name, value, gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind)
    for tensor in reader.tensors:
        if tensor.name != drop:
            w.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if extra:
        w.add_tensor(extra, np.ones(32, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return target
