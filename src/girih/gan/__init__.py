"""Generators trained against a discriminator; what they have learned is then read exactly, by `girih.geometry`."""

from girih.gan.gan import GAN

__all__ = ["GAN"]
