"""A reward model: an adapter and a scalar head on a frozen base, trained on pairs of a better and a worse answer."""
