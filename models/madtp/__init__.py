"""MADTP: tokens pruned by attention and by alignment with concepts shared by image and text.

*Source: Cao et al., MADTP: Multimodal Alignment-Guided Dynamic Token Pruning, CVPR 2024.*
"""
