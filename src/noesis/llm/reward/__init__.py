"""Reward models: a conversation in, one number out. They judge; they write nothing and quote nothing."""
