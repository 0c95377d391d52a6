"""Token rows in, adapters out: a `TrainJob` is carried out by a `Backend`."""
