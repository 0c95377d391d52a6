"""An OpenAI-compatible server on llama.cpp, with its page, chat and probe."""
