"""Running a GGUF model in llama.cpp (xllamacpp): the engine, the OpenAI-compatible server with its page, the chat, and the client of any such endpoint."""
