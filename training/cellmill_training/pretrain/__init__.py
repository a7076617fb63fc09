"""`pretrain-encoder`: a small vision transformer learns tissue from unlabelled images, by masked autoencoding."""
