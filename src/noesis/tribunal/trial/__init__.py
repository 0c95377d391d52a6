"""A trial: judged in looks, each asking the gate whether more prompts are needed; and what code alone measures."""
