"""TCGN: Transformer with Convolution and Graph-Node co-embedding

A vision backbone that predicts local gene expression from a histology patch: a CMT-Tiny trunk (convolution and
attention) with two graph branches whose node embeddings are mixed into its third stage.

Papers:
    Xiao et al., "Transformer with convolution and graph-node co-embedding: An accurate and interpretable vision
    backbone for predicting gene expressions from local histopathological image", Medical Image Analysis 2024
    Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers", CVPR 2022 (the trunk)
    Jiang et al., "CensNet", IJCAI 2019 (the co-embedding, in censnet.py)

Written from a description of the published network; every part names the section of the paper it belongs to.
"""

import logging
import warnings
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    GroupNorm1,
    LayerScale2d,
    NormMlpClassifierHead,
    calculate_drop_path_rates,
    register_notrace_module,
    trunc_normal_,
)
from timm.layers.trace_utils import _assert
from timm.models import _registry as timm_registry
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, named_apply, register_model
from timm.models._features import feature_take_indices
from torch import nn

from ..errors import CheckpointError, ManifestError
from ..weights.hub import resolve
from ..weights.manifest import ManifestEntry, find_weights, load_manifest, package_manifest, registries
from ..weights.published_keys import is_trunk_key, rename_published
from .censnet import GraphEmbed

__all__ = ["TCGN", "checkpoint_filter_fn", "trunk_filter_fn"]

_logger = logging.getLogger(__name__)

IMG_SIZE = 224
GRID_SIZE = 14  # three attention layers mix over the 14 x 14 graph nodes, which fixes the image size


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H * W, C), a view where the map is stored channels last."""
    B, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, H * W, C)


def _map(x: torch.Tensor, size: List[int]) -> torch.Tensor:
    """(B, H * W, C) -> (B, C, H, W), stored channels last.

    Not transpose and reshape: at batch 1 that leaves a batch stride of C, with which PyTorch's CPU backward of
    BatchNorm in eval mode gives wrong gradients.
    """
    B, _, C = x.shape
    return x.reshape(B, size[0], size[1], C).permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Three 3x3 convolutions, GELU before BatchNorm, the first one of stride 2. (CMT, section 3.1)"""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm3 = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # everything up to the head then stays channels last, where tokens and maps are views of each other
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.norm1(self.act(self.conv1(x)))
        x = self.norm2(self.act(self.conv2(x)))
        return self.norm3(self.act(self.conv3(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, and the size of their grid."""

    def __init__(self, patch_size: int, in_dim: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, List[int]]:
        x = self.proj(x)
        return self.norm(_tokens(x)), x.shape[-2:]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, bias_scale: float
) -> torch.Tensor:
    """``softmax(scale q k' + bias_scale bias) v`` for q (B, H, N, D), k and v (B, H, M, D), bias (H or 1, N, M).

    Written out: with a learned bias and heads this small PyTorch's fused kernels are not used, or are slower.
    """
    B, H, N, D = q.shape
    bias = bias.expand(B, H, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=bias_scale, alpha=scale)
    return torch.bmm(scores.softmax(dim=2), v.flatten(0, 1)).view(B, H, N, D)


class ShortcutConv(nn.Conv2d):
    """Depthwise 3x3 convolution plus its input, as one convolution: the shortcut is a 1 in the middle of the kernel."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def kernel(self) -> torch.Tensor:
        """The kernel with the shortcut in it, built from the weight alone, which compilers with frozen weights fold."""
        before, middle, after = self.weight.flatten(1).split([4, 1, 4], dim=1)
        return torch.cat([before, middle + 1, after], dim=1).view_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel(), self.bias, padding=1, groups=self.groups)


@register_notrace_module  # it asks whether autocast is on, which symbolic tracing cannot follow
class ReducingConv(nn.Conv2d):
    """Depthwise convolution with kernels side by side: a smaller map for keys and values. (CMT, 3.2)"""

    def __init__(self, dim: int, ratio: int, device=None, dtype=None):
        super().__init__(dim, dim, ratio, stride=ratio, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # its backward in bfloat16 takes ten times as long on a CPU as in float32
            with torch.autocast("cpu", enabled=False):
                x = self._conv_forward(x.float(), self.weight.float(), self.bias.float())
            return x.to(torch.get_autocast_dtype("cpu"))
        return self._conv_forward(x, self.weight, self.bias)


class Attention(nn.Module):
    """Attention with a position bias and, where ``sr_ratio`` > 1, keys and values from a smaller map. (CMT, 3.2)"""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int = 1, qkv_bias: bool = True, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        if sr_ratio > 1:
            self.sr = nn.Sequential(ReducingConv(dim, sr_ratio, **dd), nn.BatchNorm2d(dim, **dd))
        else:
            self.sr = None
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor, size: List[int], relative_pos: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        if self.sr is not None:
            x = _tokens(self.sr(_map(x, size)))
        k = self.k(x).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        x = _attend(q, k, v, relative_pos.to(q.dtype), self.head_dim**-0.5, 1.0)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class InvertedResidualFfn(nn.Module):
    """Inverted residual feed-forward: widen, depthwise 3x3 with a shortcut, narrow. (CMT, 3.2)"""

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.norm1 = nn.BatchNorm2d(hidden_dim, **dd)
        self.dw = ShortcutConv(hidden_dim, **dd)
        self.norm_dw = nn.BatchNorm2d(hidden_dim, **dd)
        self.conv2 = nn.Conv2d(hidden_dim, dim, 1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.act(self.conv1(x)))
        x = self.norm_dw(self.act(self.dw(x)))
        return self.norm2(self.conv2(x))


class CmtBlock(nn.Module):
    """Local perception, attention, inverted residual feed-forward. (CMT, 3.2)"""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.local = ShortcutConv(dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = Attention(dim, num_heads, sr_ratio=sr_ratio, qkv_bias=qkv_bias, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.ffn = InvertedResidualFfn(dim, hidden_dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor, relative_pos: torch.Tensor) -> torch.Tensor:
        size = x.shape[-2:]
        x = _tokens(self.local(x))
        x = x + self.drop_path(self.attn(self.norm1(x), size, relative_pos))
        return _map(x, size) + self.drop_path(self.ffn(_map(self.norm2(x), size)))


class EncoderBlock(nn.Module):
    """Transformer encoder block; scores are divided by the root of the whole width. (TCGN, feature fusion)

    Args:
        dim: Width of the last axis.
        num_heads: Attention heads.
        self_bias: Add the identity to the scores, before they are divided.
        mlp_ratio: Width of the feed-forward, as a multiple of ``dim``.
        drop: Dropout rate after attention and in the feed-forward.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        self_bias: bool = False,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.self_bias = self_bias
        self.scale = dim**-0.5
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.qkv = nn.Linear(dim, dim * 3, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio), **dd)
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor, num_out: int) -> torch.Tensor:
        """Mix the tokens (B, N, dim), and return the first ``num_out`` of them, (B, num_out, dim)."""
        B, N, C = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        eye = torch.eye(num_out, N, dtype=q.dtype, device=q.device).unsqueeze(0)
        mixed = _attend(q[:, :, :num_out], k, v, eye, self.scale, self.scale if self.self_bias else 0.0)
        x = x[:, :num_out] + self.drop(mixed.transpose(1, 2).reshape(B, num_out, C))
        return x + self.drop(self.fc2(self.drop(self.act(self.fc1(self.norm2(x))))))


class ChannelAttention(nn.Module):
    """Mix node embeddings into a trunk map, channel with channel over the 196 positions. (TCGN, feature fusion)"""

    def __init__(self, num_heads: int = 4, mlp_ratio: float = 4.0, drop: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.encoder = EncoderBlock(GRID_SIZE**2, num_heads, self_bias=True, mlp_ratio=mlp_ratio, drop=drop, **dd)

    def forward(self, x: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Tokens (B, 196, C) and nodes (B, 196, D) -> tokens (B, 196, C)"""
        mixed = torch.cat([x, nodes], dim=2).transpose(1, 2)
        return self.encoder(mixed, x.shape[2]).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, normalisation over the whole map, pointwise feed-forward, layer scale."""

    def __init__(self, dim: int, layer_scale: float = 0.1, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=False, **dd)
        self.norm = GroupNorm1(dim, **dd)
        self.conv1 = nn.Conv2d(dim, dim * 4, 1, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim * 4, dim, 1, **dd)
        self.scale = LayerScale2d(dim, layer_scale, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale(self.conv2(self.act(self.conv1(self.norm(self.dw(x))))))


class GraphBlock(nn.Module):
    """A trunk map as a graph of 196 patches, embedded with its edges. (TCGN, graph-node co-embedding)

    Args:
        in_dim: Channels of the trunk map.
        conv_stages: (channels, residual blocks) of the ConvNeXt stages that halve the map down to 14 x 14.
        out_dim: Channels of the node embeddings.
        num_heads: Heads of the connection analyser and of the CMT blocks.
        mlp_ratio: Width of the feed-forwards, as a multiple of their input.
        drop: Dropout rate in CensNet and the encoder blocks.
    """

    def __init__(
        self,
        in_dim: int,
        conv_stages: Tuple[Tuple[int, int], ...],
        out_dim: int = 48,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.grid_size = GRID_SIZE
        num_nodes = GRID_SIZE**2
        dim = conv_stages[-1][0]
        edge_dim = out_dim // 4

        layers: List[nn.Module] = []
        prev_dim = in_dim
        for width, depth in conv_stages:
            layers += [GroupNorm1(prev_dim, **dd), nn.Conv2d(prev_dim, width, 2, stride=2, **dd)]
            layers += [ConvNeXtBlock(width, **dd) for _ in range(depth)]
            prev_dim = width
        self.conv_embed = nn.Sequential(*layers)

        def cmt_block(width: int) -> CmtBlock:
            hidden_dim = int(mlp_ratio * width)
            return CmtBlock(width, num_heads, hidden_dim=hidden_dim, qkv_bias=False, norm_eps=1e-5, **dd)

        self.patch_embed = PatchEmbed(2 ** len(conv_stages), in_dim, dim, **dd)
        self.relative_pos = nn.Parameter(torch.empty(num_heads, num_nodes, num_nodes, **dd))
        self.patch_block = cmt_block(dim)
        self.co_embed = GraphEmbed(dim, num_heads=num_heads, grid_size=GRID_SIZE, out_dim=out_dim, drop=drop, **dd)
        self.edge_block = EncoderBlock(edge_dim, num_heads=2, mlp_ratio=mlp_ratio, drop=drop, **dd)
        self.node_block = cmt_block(out_dim)
        self.mix_block = EncoderBlock(num_nodes, num_heads=4, mlp_ratio=mlp_ratio, drop=drop, **dd)
        self.fuse = nn.Linear(out_dim + edge_dim, out_dim, **dd)

    def views(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The two views of the nodes that the graph is built from: patch tokens and convolution tokens."""
        tokens, size = self.patch_embed(x)
        patch_tokens = _tokens(self.patch_block(_map(tokens, size), self.relative_pos))
        return patch_tokens, _tokens(self.conv_embed(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patch_tokens, conv_tokens = self.views(x)
        nodes, edges = self.co_embed(patch_tokens, conv_tokens)
        edges = self.edge_block(edges, edges.shape[1])
        nodes = _tokens(self.node_block(_map(nodes, [self.grid_size, self.grid_size]), self.relative_pos))
        mixed = torch.cat([nodes, edges], dim=2).transpose(1, 2)
        return self.fuse(self.mix_block(mixed, mixed.shape[1]).transpose(1, 2))


class Stage(nn.Module):
    """A stage of the trunk: patch embedding and CMT blocks that share one position bias.

    A stage may feed the graph (``graph``: its map becomes node embeddings) or take node embeddings of earlier stages
    in before its first block (``fuse_in``) and after its last (``fuse_out``).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        sr_ratio: int,
        grid_size: int,
        mlp_ratio: float,
        drop_path: List[float],
        graph: Optional[nn.Module] = None,
        fuse_in: Optional[nn.Module] = None,
        fuse_out: Optional[nn.Module] = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(2, in_dim, dim, **dd)
        num_tokens = grid_size**2
        self.relative_pos = nn.Parameter(torch.empty(num_heads, num_tokens, num_tokens // sr_ratio**2, **dd))
        self.blocks = nn.ModuleList(
            [
                CmtBlock(
                    dim, num_heads, hidden_dim=int(dim * mlp_ratio), sr_ratio=sr_ratio, drop_path=drop_path[i], **dd
                )
                for i in range(depth)
            ]
        )
        self.graph = graph
        self.fuse_in = fuse_in
        self.fuse_out = fuse_out

    def forward(self, x: torch.Tensor, nodes: List[torch.Tensor]) -> torch.Tensor:
        """Args: x: Map (B, C, H, W). nodes: Node embeddings of earlier stages, to which this stage adds its own."""
        x, size = self.patch_embed(x)
        if self.fuse_in is not None:
            x = self.fuse_in(x, nodes[0])
        x = _map(x, size)
        for blk in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(blk, x, self.relative_pos)
            else:
                x = blk(x, self.relative_pos)
        if self.fuse_out is not None:
            x = _map(self.fuse_out(_tokens(x), nodes[1]), size)
        if self.graph is not None:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                nodes.append(checkpoint(self.graph, x))
            else:
                nodes.append(self.graph(x))
        return x


class Head(NormMlpClassifierHead):
    """Pool, dropout, hidden layer, classifier. The dropout acts on the pooled features, as published."""

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.flatten(self.global_pool(x))
        x = self.pre_logits(self.drop(x))
        if pre_logits:
            return x
        return self.fc(x)


class TCGN(nn.Module):
    """Transformer with Convolution and Graph-Node co-embedding. (Xiao et al., Medical Image Analysis 2024)

    Args:
        img_size: Image size; only 224 exists, because three attention layers mix over the 196 graph nodes.
        in_chans: Input channels.
        num_classes: Outputs, one per gene.
        global_pool: 'avg', 'max' and the other non-concatenating types of timm, or '' for none.
        stem_dim: Channels of the stem.
        embed_dims: Channels of the four stages; the second and third are also those of the graphs' nodes.
        depths: CMT blocks of each stage.
        num_heads: Attention heads of each stage.
        sr_ratios: By how much each stage's map of keys and values is smaller along a side.
        mlp_ratio: Width of the trunk's feed-forwards, as a multiple of the stage's channels.
        graph_dim: Channels of the node embeddings.
        graph_depths: Residual blocks of the convolution stages that lead to each graph.
        graph_mlp_ratio: Width of the feed-forwards in graph blocks and channel attention.
        num_features: Channels of the final map.
        head_hidden_size: Width of the head's hidden layer.
        drop_rate: Dropout rate of the pooled features.
        graph_drop_rate: Dropout rate in CensNet and in the encoder blocks.
        drop_path_rate: Stochastic depth rate of the trunk's last block, rising linearly from 0.

    Raises:
        ValueError: ``img_size`` is not 224.
    """

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = IMG_SIZE,
        in_chans: int = 3,
        num_classes: int = 785,
        global_pool: str = "avg",
        stem_dim: int = 16,
        embed_dims: Tuple[int, ...] = (46, 92, 184, 368),
        depths: Tuple[int, ...] = (2, 2, 10, 2),
        num_heads: Tuple[int, ...] = (1, 2, 4, 8),
        sr_ratios: Tuple[int, ...] = (8, 4, 2, 1),
        mlp_ratio: float = 3.6,
        graph_dim: int = 48,
        graph_depths: Tuple[Tuple[int, ...], ...] = ((2, 1), (2,)),
        graph_mlp_ratio: float = 4.0,
        num_features: int = 1280,
        head_hidden_size: int = 5120,
        drop_rate: float = 0.1,
        graph_drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if size != (IMG_SIZE, IMG_SIZE):
            raise ValueError(f"TCGN takes {IMG_SIZE} x {IMG_SIZE} images only, got img_size {size}.")
        self.img_size = size
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = num_features
        self.head_hidden_size = head_hidden_size
        self.embed_dims = embed_dims

        self.stem = Stem(in_chans, stem_dim, **dd)

        dpr = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        graph_kwargs = {"mlp_ratio": graph_mlp_ratio, "drop": graph_drop_rate, **dd}
        widths = (embed_dims[:2], embed_dims[2:3])
        graphs = [
            GraphBlock(embed_dims[i], tuple(zip(widths[i], graph_depths[i], strict=True)), graph_dim, **graph_kwargs)
            for i in range(2)
        ]
        self.stages = nn.ModuleList()
        self.feature_info = []
        prev_dim = stem_dim
        for i, dim in enumerate(embed_dims):
            reduction = 2 ** (i + 2)
            self.stages.append(
                Stage(
                    prev_dim,
                    dim,
                    depths[i],
                    num_heads=num_heads[i],
                    sr_ratio=sr_ratios[i],
                    grid_size=IMG_SIZE // reduction,
                    mlp_ratio=mlp_ratio,
                    drop_path=dpr[i],
                    graph=graphs[i] if i < 2 else None,
                    fuse_in=ChannelAttention(**graph_kwargs) if i == 2 else None,
                    fuse_out=ChannelAttention(**graph_kwargs) if i == 2 else None,
                    **dd,
                )
            )
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
            prev_dim = dim

        self.final_conv = nn.Sequential(
            nn.Conv2d(prev_dim, num_features, 1, **dd), nn.BatchNorm2d(num_features, **dd), nn.SiLU()
        )
        self.head = Head(
            num_features,
            num_classes,
            hidden_size=head_hidden_size,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=nn.Identity,
            act_layer="gelu",
            **dd,
        )
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        named_apply(_init_weights, self)

    @torch.jit.ignore
    def no_weight_decay(self):
        return {name for name, _ in self.named_parameters() if name.endswith("relative_pos")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False):
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:patch_embed|relative_pos|fuse_in)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.(?:graph|fuse_out)", (999,)),
                (r"^final_conv", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    @torch.jit.ignore
    def fuse(self) -> "TCGN":
        """Make norms and shortcuts part of the convolutions beside them, in place: the same outputs, sooner.

        A BatchNorm stays where a GELU comes before it and a convolution that pads after it. A fused model is for
        inference: it cannot be trained as before, and its state dict is no checkpoint of the architecture.

        Returns:
            The model itself.

        Raises:
            RuntimeError: The model is in train mode, in which norms follow the batch.
        """
        if self.training:
            raise RuntimeError("A model in train mode cannot be fused; call eval() first.")
        if isinstance(self.stem.norm3, nn.BatchNorm2d):
            _fold(self.stages[0].patch_embed.proj, before=self.stem.norm3)
            self.stem.norm3 = nn.Identity()
        for module in self.modules():
            if isinstance(module, InvertedResidualFfn) and isinstance(module.norm2, nn.BatchNorm2d):
                _fold(module.conv2, before=module.norm_dw, after=module.norm2)
                module.norm_dw, module.norm2 = nn.Identity(), nn.Identity()
            elif isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
                _fold(module[0], after=module[1])
                module[1] = nn.Identity()
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, ShortcutConv):
                    conv = nn.Conv2d(child.groups, child.groups, 3, padding=1, groups=child.groups, device="meta")
                    conv.weight, conv.bias = _like(child.kernel(), child.weight), child.bias
                    setattr(module, name, conv.eval())
        return self

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the last layer; the hidden layer before it stays."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Forward features that returns intermediates.

        Args:
            x: Input image tensor.
            indices: Take last n stages if int, all if None, select matching indices if sequence.
            norm: No effect, the stages of this model end without a normalisation layer.
            stop_early: Stop iterating over stages when last desired intermediate hit.
            output_fmt: Shape of intermediate feature outputs.
            intermediates_only: Only return intermediate features.

        Returns:
            Features and list of intermediate features or just intermediate features.
        """
        assert output_fmt == "NCHW", "Output format must be NCHW."
        intermediates: List[torch.Tensor] = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)

        x = self.stem(x)
        nodes: List[torch.Tensor] = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > max_index:
                break
            x = stage(x, nodes)
            if i in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        if i == len(self.stages) - 1:
            x = self.final_conv(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Prune layers not required for specified intermediates.

        Args:
            indices: Indices of the stages to keep.
            prune_norm: Whether to prune the final convolution though the head stays.
            prune_head: Whether to prune the classifier head, and the final convolution that only it has a use for.

        Returns:
            List of indices that were kept.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        if prune_norm or prune_head or max_index < len(self.stages) - 1:
            self.final_conv = nn.Identity()
            self.num_features = self.embed_dims[max_index]
        self.stages = self.stages[: max_index + 1]
        if max_index < 2:
            for stage in self.stages:
                stage.graph = None
        if prune_head:
            self.head.reset(0, "", reset_other=True, in_features=self.num_features)
            self.num_classes = 0
            self.head_hidden_size = self.num_features
        return take_indices

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Map of the stem (B, stem_dim, 112, 112) -> map of the last stage (B, embed_dims[3], 7, 7)"""
        nodes: List[torch.Tensor] = []
        for stage in self.stages:
            x = stage(x, nodes)
        return x

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, C, 224, 224) -> final map (B, num_features, 7, 7); its mean over positions is *the* feature."""
        _assert(x.shape[-2] == self.img_size[0], "TCGN takes 224 x 224 images only, resize the input.")
        _assert(x.shape[-1] == self.img_size[1], "TCGN takes 224 x 224 images only, resize the input.")
        return self.final_conv(self.forward_stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _like(value: torch.Tensor, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.detach().to(parameter.dtype), requires_grad=parameter.requires_grad)


def _fold(conv: nn.Conv2d, before: Optional[nn.BatchNorm2d] = None, after: Optional[nn.BatchNorm2d] = None) -> None:
    """Make norms in eval mode part of a convolution; one before it must not meet padding, or groups."""
    weight, bias = conv.weight.detach(), conv.bias.detach()
    if before is not None:
        scale, shift = _scale_shift(before)
        bias = bias + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
        weight = weight * scale[:, None, None]
    if after is not None:
        scale, shift = _scale_shift(after)
        bias, weight = bias * scale + shift, weight * scale[:, None, None, None]
    conv.weight, conv.bias = _like(weight, conv.weight), _like(bias, conv.bias)


def _scale_shift(norm: nn.BatchNorm2d) -> Tuple[torch.Tensor, torch.Tensor]:
    """What a BatchNorm in eval mode multiplies with and adds."""
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    mean, var, weight, bias = (
        x.detach().to(dtype) for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight * (var + norm.eps).rsqrt()
    return scale, bias - mean * scale


def _init_weights(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (Stage, GraphBlock)):
        trunc_normal_(module.relative_pos, std=0.02)


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Remap a published checkpoint to our names; a CheckpointError if a key is missing, unexpected or of another shape.

    timm loads with ``strict=False`` as soon as the number of classes differs; the check here keeps a wrong file from
    ending in random weights. Only the classifier may have another shape than the model's. Where nothing is pooled the
    head's linear layers are convolutions of 1 x 1, whose weights have two dimensions more.
    """
    state_dict = rename_published(state_dict)

    expected = model.state_dict()
    classifier = {"head.fc.weight", "head.fc.bias"}
    if not getattr(model, "pretrained_cfg", {}).get("num_classes", 1):
        # weights of a backbone: whatever classifier the model has is new
        expected = {k: v for k, v in expected.items() if k not in classifier}
    missing = [k for k in expected if k not in state_dict]
    unexpected = [k for k in state_dict if k not in expected and k not in classifier]
    reshaped = [
        k
        for k, v in expected.items()
        if k in state_dict
        and k not in classifier
        and k != "stem.conv1.weight"
        and (v.numel() != state_dict[k].numel() if k.startswith("head.") else v.shape != state_dict[k].shape)
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another size", reshaped))
        if keys
    ]
    if problems:
        raise CheckpointError(f"The checkpoint does not fit {type(model).__name__}: keys {'; '.join(problems)}.")
    heads = [k for k in expected if k.startswith("head.") and expected[k].numel() == state_dict[k].numel()]
    return {**state_dict, **{k: state_dict[k].reshape(expected[k].shape) for k in heads}}


def trunk_filter_fn(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """`checkpoint_filter_fn` for a checkpoint of the trunk alone: graph branches and head keep what the model has."""
    fresh = {key: value for key, value in model.state_dict().items() if not is_trunk_key(key)}
    return checkpoint_filter_fn({**fresh, **rename_published(state_dict)}, model)


def _create_tcgn(variant: str, pretrained: bool = False, **kwargs: Any) -> TCGN:
    """Weights of the manifest are verified by sha256 before they are read, and fetched from the Hub if need be.

    A source named in ``pretrained_cfg_overlay`` is read as it is.
    """
    filter_fn = checkpoint_filter_fn
    entry = _manifest_entry(variant, kwargs) if pretrained else None
    if entry is not None:
        path = resolve(entry, cache_dir=kwargs.get("cache_dir")).path
        kwargs["pretrained_cfg_overlay"] = {**(kwargs.get("pretrained_cfg_overlay") or {}), "file": str(path)}
        if entry.info.scope == "trunk":
            filter_fn = trunk_filter_fn
            _logger.warning("%s fills the trunk; the graph branches and the head are new and untrained.", entry.tag)
    model = build_model_with_cfg(
        TCGN,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    labels = model.pretrained_cfg.get("label_names")
    if labels and getattr(model, "num_classes", len(labels)) != len(labels):
        # names of other outputs would be wrong names
        del model.pretrained_cfg["label_names"]
    return model


def _manifest_entry(variant: str, kwargs: Dict[str, Any]) -> Optional[ManifestEntry]:
    """The entry whose verified file is to be read, or None where the user named another source."""
    cfg, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay") or {}
    if any(overlay.get(key) for key in ("source", "state_dict", "file", "hf_hub_id", "url")):
        # the file of our cfg would win over a weaker source that the user asked for
        kwargs["pretrained_cfg_overlay"] = {"file": None, **overlay}
        return None
    if cfg is not None and not isinstance(cfg, str):
        return None
    return find_weights(f"{variant}.{cfg}" if cfg else variant)


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 785,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        **kwargs,
    }


def _cfg_of(weights: ManifestEntry) -> Dict[str, Any]:
    file = weights.model_file
    outputs: Dict[str, Any] = {}
    if weights.info.scope != "trunk":
        outputs = {"num_classes": len(weights.info.genes), "label_names": weights.info.genes}
    return _cfg(
        **outputs,
        file=str(weights.folder / file.name) if weights.bundled and file else None,
        hf_hub_id=f"{weights.hub['repo_id']}@{weights.hub['revision']}" if weights.hub["repo_id"] else None,
        license=weights.info.license,
    )


def _default_cfgs() -> Dict[str, Any]:
    """The tags of the manifests; of the package's own alone where another cannot be read, for timm goes on."""
    try:
        entries = load_manifest()
    except ManifestError as err:
        warnings.warn(f"Weights are left out of timm's registry. {err}", stacklevel=2)
        try:
            entries = package_manifest()
        except ManifestError:
            entries = {}
    tags = {weights.tag: _cfg_of(weights) for weights in entries.values()}
    return generate_default_cfgs({**tags, "tcgn_base.untrained": _cfg(), "test_tcgn.untrained": _cfg(num_classes=8)})


default_cfgs = _default_cfgs()


@register_model
def tcgn_base(pretrained: bool = False, **kwargs: Any) -> TCGN:
    """TCGN as published: a CMT-Tiny trunk and two graph branches, 22.5 million parameters."""
    return _create_tcgn("tcgn_base", pretrained=pretrained, **kwargs)


@register_model
def test_tcgn(pretrained: bool = False, **kwargs: Any) -> TCGN:  # noqa: PT028 - no test: timm names them so
    """A tiny TCGN to test with: the same parts, a thousandth of the arithmetic."""
    model_args = {
        "stem_dim": 4,
        "embed_dims": (8, 8, 16, 16),
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 2, 2),
        "sr_ratios": (14, 7, 2, 1),
        "mlp_ratio": 2.0,
        "graph_dim": 16,
        "graph_depths": ((1, 1), (1,)),
        "graph_mlp_ratio": 0.5,
        "num_features": 32,
        "head_hidden_size": 64,
    }
    return _create_tcgn("test_tcgn", pretrained=pretrained, **{**model_args, **kwargs})


def register_tags() -> None:
    """Tell timm of the tags that came or went since this module was imported."""
    global default_cfgs
    default_cfgs = _default_cfgs()
    for entrypoint in (tcgn_base, test_tcgn):
        # without this timm warns of a name that is registered again
        timm_registry._clear_model_entries(entrypoint.__name__)
        timm_registry._model_entrypoints.pop(entrypoint.__name__)
        register_model(entrypoint)


registries.append(register_tags)
