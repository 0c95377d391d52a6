"""Running a GGUF model in llama.cpp (xllamacpp): the engine, and a chat in the terminal."""
