"""How a training job is carried out: on the engine, by transformers, by Unsloth, on several GPUs."""
