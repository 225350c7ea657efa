"""Names of parameters: those of the published checkpoints as ours, and which of ours are the trunk's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CMT_KEYS = [
    (r"\.mlp\.conv1\.0\.", r".ffn.conv1."),
    (r"\.mlp\.conv1\.2\.", r".ffn.norm1."),
    (r"\.mlp\.proj\.", r".ffn.dw."),
    (r"\.mlp\.proj_bn\.", r".ffn.norm_dw."),
    (r"\.mlp\.conv2\.0\.", r".ffn.conv2."),
    (r"\.mlp\.conv2\.1\.", r".ffn.norm2."),
    (r"^(blocks_[abcd]\.\d+|.*CMT_encoder1|.*node_transformer)\.proj\.", r"\1.local."),
]
_ENCODER_KEYS = [
    (r"\.layernorm([12])\.", r".norm\1."),
    (r"\.Attention\.qkv\.", r".qkv."),
    (r"\.FFN\.0\.", r".fc1."),
    (r"\.FFN\.3\.", r".fc2."),
]
_CONVNEXT_KEYS = [
    (r"\.convnext1\.0\.(\d)\.", r".conv_embed.\1."),
    (r"\.convnext1\.1\.", r".conv_embed.2."),
    (r"\.convnext1\.2\.", r".conv_embed.3."),
    (r"\.convnext2\.0\.0\.", r".conv_embed.4."),
    (r"\.convnext2\.0\.1\.", r".conv_embed.5."),
    (r"\.convnext2\.1\.", r".conv_embed.6."),
    (r"\.block\.0\.", r".dw."),
    (r"\.block\.1\.", r".norm."),
    (r"\.block\.2\.", r".conv1."),
    (r"\.block\.4\.", r".conv2."),
    (r"\.layer_scaler\.", r".scale."),
]
_TOP_KEYS = [
    (r"^stem_(conv|norm)(\d)\.", r"stem.\1\2."),
    (r"^relative_pos_([abcd])$", r"stages.\1.relative_pos"),
    (r"^patch_embed_([abcd])\.", r"stages.\1.patch_embed."),
    (r"^blocks_([abcd])\.", r"stages.\1.blocks."),
    (r"^gnn_block0\.", r"stages.a.graph."),
    (r"^gnn_block1\.", r"stages.b.graph."),
    (r"^channel_attention0\.transformer\.", r"stages.c.fuse_in.encoder."),
    (r"^channel_attention1\.transformer\.", r"stages.c.fuse_out.encoder."),
    (r"\.patch_embedding\.", r".patch_embed."),
    (r"\.CMT_encoder1\.", r".patch_block."),
    (r"\.MHSA\.([qk])\.", r".co_embed.\1."),
    (r"\.MHSA\.value_transform\.", r".co_embed.value."),
    (r"\.censnet\.gc1\.", r".co_embed.censnet.node1."),
    (r"\.censnet\.gc2\.", r".co_embed.censnet.edge."),
    (r"\.censnet\.gc3\.", r".co_embed.censnet.node2."),
    (r"\.transformer_fusion_encoder\.edge_transformer\.", r".edge_block."),
    (r"\.transformer_fusion_encoder\.node_transformer\.", r".node_block."),
    (r"\.transformer_fusion_encoder\.channel_attention_196\.", r".mix_block."),
    (r"\.transformer_fusion_encoder\.linear_fusion\.", r".fuse."),
    (r"^_fc\.", r"final_conv.0."),
    (r"^_bn\.", r"final_conv.1."),
    (r"^head\.0\.", r"head.pre_logits.fc."),
    (r"^head\.2\.", r"head.fc."),
]
_PUBLISHED_KEYS = [(re.compile(old), new) for old, new in _CMT_KEYS + _ENCODER_KEYS + _CONVNEXT_KEYS + _TOP_KEYS]
_STAGE_LETTER = re.compile(r"^stages\.([abcd])\.")


def rename_key(key: str) -> str:
    """Our name of a parameter of the published checkpoint."""
    for old, new in _PUBLISHED_KEYS:
        key = old.sub(new, key)
    return _STAGE_LETTER.sub(lambda m: f"stages.{'abcd'.index(m[1])}.", key)


def rename_published(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint under our names: one of the published layout is renamed, any other is returned as it is."""
    if "stem_conv1.weight" not in state_dict:
        return state_dict
    heads = {"edge_block": 2, "mix_block": 4, "encoder": 4}
    renamed = {}
    for key, value in state_dict.items():
        key = rename_key(key)
        *_, block, leaf, _ = ("", "", *key.split("."))
        if leaf == "qkv":
            # published rows are laid out (head, channel, qkv), ours (qkv, head, channel)
            value = value.reshape(heads[block], -1, 3, *value.shape[1:]).movedim(2, 0).reshape(value.shape)
        renamed[key] = value
    return renamed


_NOT_TRUNK = re.compile(r"stages\.\d+\.(graph|fuse_in|fuse_out)\.|head\.")


def is_trunk_key(key: str) -> bool:
    """Whether a parameter of our name belongs to the trunk, and not to the graph branches or the head."""
    return not _NOT_TRUNK.match(key)
