"""The data loader: order of an epoch, access to shard files, and decoded, augmented batches."""
