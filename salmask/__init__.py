"""Self-supervised pretraining of ConvNets: masking is an augmentation, saliency says where."""

__version__ = "0.2.0"
