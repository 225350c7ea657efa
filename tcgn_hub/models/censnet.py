"""The learned graph of TCGN: which patches are connected, and the co-embedding of nodes and edges.

The attention between two views of an image gives a dense 196 x 196 relation; its strongest entries become the
directed edges of a sparse graph, and CensNet (Jiang et al., "CensNet: Convolution with Edge-Node Switching in Graph
Neural Networks", IJCAI 2019) embeds nodes and edges together. TCGN (Xiao et al., Medical Image Analysis 2024) uses
three of its layers: node, edge, node.

CensNet is written with E x E matrices. None of them is formed here: every product with the N x E incidence matrix
is a gather or a scatter, which costs O(N^2 + E) per image instead of O(N E^2). Shapes are static, nothing waits for
the host, and everything is computed in float32 whatever the autocast dtype.
"""

from typing import List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import nn

__all__ = ["CensNet", "Graph", "GraphEmbed", "build_graph", "select_edges"]


class Graph(NamedTuple):
    """A batch of directed graphs with the same number of edges.

    ``src``, ``dst``: the ends of each edge as rows of the flattened (B * N) node axis, shape (B * E,).
    ``flat``: the edges as ``src * N + dst`` within an image, ascending, (B, E).
    ``loop``: 1.0 where an edge is a self-loop, (B, E).
    ``adj``: the 0/1 adjacency matrix, (B, N, N).
    """

    src: torch.Tensor
    dst: torch.Tensor
    flat: torch.Tensor
    loop: torch.Tensor
    adj: torch.Tensor


def select_edges(score: torch.Tensor, num_edges: int) -> torch.Tensor:
    """Indices of the ``num_edges`` largest scores of each row, ascending; ties go to the lower index.

    Args:
        score: Scores to choose from, shape (B, K) with K >= num_edges.
        num_edges: How many to keep, always exactly met.

    Returns:
        Indices, int64, shape (B, num_edges).
    """
    B, K = score.shape
    threshold = score.topk(num_edges, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above = score > threshold
    tied = score == threshold
    free = num_edges - above.sum(dim=-1, keepdim=True)
    keep = above | (tied & (tied.cumsum(dim=-1) <= free))
    # entries not kept are all written to one slot past the end, which is then cut off
    slot = torch.where(keep, keep.cumsum(dim=-1) - 1, num_edges)
    index = torch.arange(K, device=score.device).expand(B, K)
    out = torch.zeros(B, num_edges + 1, dtype=torch.long, device=score.device)
    return out.scatter(1, slot, index)[:, :num_edges]


def build_graph(flat: torch.Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of edges given as ``src * num_nodes + dst``, shape (B, E), without repetitions."""
    B = flat.shape[0]
    src = flat // num_nodes
    dst = flat % num_nodes
    base = torch.arange(B, device=flat.device).unsqueeze(1) * num_nodes
    ones = torch.ones(flat.shape, dtype=dtype, device=flat.device)
    adj = torch.zeros(B, num_nodes * num_nodes, dtype=dtype, device=flat.device).scatter(1, flat, ones)
    return Graph(
        src=(src + base).flatten(),
        dst=(dst + base).flatten(),
        flat=flat,
        loop=(src == dst).to(dtype),
        adj=adj.view(B, num_nodes, num_nodes),
    )


def _edges_to_nodes(z: torch.Tensor, graph: Graph) -> torch.Tensor:
    """``T z``: each node sums the values of its edges, a self-loop twice. (B, E, C) -> (B, N, C)"""
    B, N = graph.adj.shape[:2]
    y = z.flatten(0, 1)
    out = torch.zeros(B * N, z.shape[2], dtype=z.dtype, device=z.device)
    return out.index_add(0, graph.src, y).index_add(0, graph.dst, y).view(B, N, z.shape[2])


def _ends(x: torch.Tensor, graph: Graph) -> Tuple[torch.Tensor, torch.Tensor]:
    """Values at the two ends of each edge. (B, N, C) -> two of (B, E, C)"""
    B, E = graph.flat.shape
    y = x.flatten(0, 1)
    return (y.index_select(0, graph.src).view(B, E, x.shape[2]), y.index_select(0, graph.dst).view(B, E, x.shape[2]))


def _edge_matrix(value: torch.Tensor, graph: Graph) -> torch.Tensor:
    """One value an edge as a dense matrix with zeros elsewhere. (B, E) -> (B, N, N)"""
    B, N = graph.adj.shape[:2]
    return torch.zeros(B, N * N, dtype=value.dtype, device=value.device).scatter(1, graph.flat, value).view(B, N, N)


class CensNetLayer(nn.Module):
    """Parameters of a CensNet layer: ``weight`` mixes channels, ``p`` weighs the other kind's channels."""

    def __init__(self, in_dim: int, out_dim: int, other_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim, **dd))
        self.p = nn.Parameter(torch.empty(1, other_dim, **dd))
        self.bias = nn.Parameter(torch.empty(out_dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.normal_(self.p, std=self.p.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)


class NodeLayer(CensNetLayer):
    """``X' = (M o A) X W + b``: ``M = T diag(Z p) T'``, its diagonal replaced by 1, A the normalised adjacency."""

    def forward(self, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> torch.Tensor:
        degree = graph.adj.sum(dim=2)
        # a node without outgoing edges gets weight 0, not 0 ** -0.5
        scale = torch.where(degree > 0, degree.clamp(min=1).rsqrt(), torch.zeros_like(degree))
        norm_adj = scale.unsqueeze(2) * graph.adj * scale.unsqueeze(1)
        strength = _edge_matrix(F.linear(z, self.p.to(x.dtype)).squeeze(2), graph)
        eye = torch.eye(graph.adj.shape[1], dtype=x.dtype, device=x.device)
        strength = (strength + strength.transpose(1, 2)) * (1 - eye) + eye
        return torch.bmm(strength * norm_adj, x @ self.weight.to(x.dtype)) + self.bias.to(x.dtype)


class EdgeLayer(CensNetLayer):
    """``Z' = (F / colmax F) Z W + b`` over the graph whose nodes are the edges.

    ``F = M_e o A_e``, ``M_e = T' diag(X p) T`` with its diagonal replaced by 1, ``A_e`` the normalised adjacency of
    edges that share an end. F is applied without being formed: off its diagonal ``F y = d o T'(v o T(d o y))`` less
    each edge's term with itself, and the maximum of a column follows from the two strongest edges at either end.
    """

    def forward(self, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> torch.Tensor:
        N = graph.adj.shape[1]
        loop = graph.loop
        both = graph.adj + graph.adj.transpose(1, 2)
        both = both - torch.diag_embed(graph.adj.diagonal(dim1=1, dim2=2))
        around_i, around_j = _ends(both.sum(dim=2, keepdim=True), graph)
        between = both.flatten(1).gather(1, graph.flat)
        line_degree = around_i.squeeze(2) + (around_j.squeeze(2) - between) * (1 - loop) + 1
        delta = line_degree.rsqrt()

        v = F.linear(x, self.p.to(x.dtype))
        v_i, v_j = _ends(v, graph)
        v_i, v_j = v_i.squeeze(2), v_j.squeeze(2)

        # the strongest other edge at either end, by its factor T * delta
        factor = _edge_matrix(delta * (1 + loop), graph)
        two = torch.maximum(factor, factor.transpose(1, 2)).topk(2, dim=2)
        first_i, first_j = _ends(two.values, graph)
        top_i, top_j = _ends(two.indices[:, :, :1], graph)
        src = graph.flat // N
        dst = graph.flat % N
        other_i = torch.where(top_i.squeeze(2) == dst, first_i[:, :, 1], first_i[:, :, 0]) * v_i.relu()
        other_j = torch.where(top_j.squeeze(2) == src, first_j[:, :, 1], first_j[:, :, 0]) * v_j.relu()
        reverse = factor.flatten(1).gather(1, dst * N + src) * (v_i + v_j) * (1 - loop)
        colmax = torch.maximum(torch.maximum(other_i, other_j) * (1 + loop), reverse) * delta
        colmax = torch.maximum(colmax, line_degree.reciprocal())

        y = (z @ self.weight.to(x.dtype)) / colmax.unsqueeze(2)
        dy = y * delta.unsqueeze(2)
        near_i, near_j = _ends(v * _edges_to_nodes(dy, graph), graph)
        own = (v_i + v_j) * (1 + loop)
        out = (near_i + near_j - own.unsqueeze(2) * dy) * delta.unsqueeze(2) + y / line_degree.unsqueeze(2)
        return out + self.bias.to(x.dtype)


class CensNet(nn.Module):
    """Three CensNet layers: node, edge, node.

    Args:
        node_dim: Channels of the node features that come in.
        edge_dim: Channels of the edge features that come in.
        node_out: Channels of the node features that go out.
        edge_out: Channels of the edge features that go out.
        drop: Dropout rate between the layers.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int = 6,
        node_out: int = 48,
        edge_out: int = 12,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.node1 = NodeLayer(node_dim, node_dim, edge_dim, **dd)
        self.edge = EdgeLayer(edge_dim, edge_out, node_dim, **dd)
        self.node2 = NodeLayer(node_dim, node_out, edge_out, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> Tuple[torch.Tensor, torch.Tensor]:
        """Embed nodes (B, N, node_dim) and edges (B, E, edge_dim) into (B, N, node_out) and (B, E, edge_out)."""
        x, z = self.drop(self.node1(x, z, graph).relu()), self.drop(z.relu())
        z, x = self.drop(self.edge(x, z, graph).relu()), self.drop(x)
        return self.node2(x, z, graph), z


@register_notrace_module  # it asks whether autocast is on, which symbolic tracing cannot follow
class GraphEmbed(nn.Module):
    """Connection analyser, edge selection and CensNet: two views of 196 nodes in, node embeddings out.

    Args:
        dim: Channels of both views.
        num_heads: Attention heads; each gives one edge feature.
        grid_size: Nodes along one side of the square grid.
        edges_per_node: Edges kept, as a multiple of the number of nodes.
        out_dim: Channels of the node embeddings; those of the edges have a quarter.
        drop: Dropout rate inside CensNet.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 2,
        grid_size: int = 14,
        edges_per_node: int = 4,
        out_dim: int = 48,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.grid_size = grid_size
        self.num_edges = edges_per_node * grid_size**2
        self.q = nn.Linear(dim, dim, **dd)
        self.k = nn.Linear(dim, dim, **dd)
        self.value = nn.Linear(dim, dim, **dd)
        self.censnet = CensNet(dim, edge_dim=num_heads + 4, node_out=out_dim, edge_out=out_dim // 4, drop=drop, **dd)

    def forward(self, patch_tokens: torch.Tensor, conv_tokens: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Embed a graph.

        Args:
            patch_tokens: One view of the nodes, the queries, (B, N, dim).
            conv_tokens: The other view, keys and node features, (B, N, dim).

        Returns:
            Node embeddings (B, N, out_dim), and edge embeddings summed at their ends and divided by 4,
            (B, N, out_dim / 4).
        """
        if torch.jit.is_scripting():
            out = self._embed(_full_precision(patch_tokens), _full_precision(conv_tokens))
        else:
            device_type = patch_tokens.device.type
            # the meta device has no autocast, and cannot be asked whether it is on
            if not patch_tokens.is_meta and torch.is_autocast_enabled(device_type):
                with torch.autocast(device_type, enabled=False):
                    out = self._embed(_full_precision(patch_tokens), _full_precision(conv_tokens))
            else:
                out = self._embed(_full_precision(patch_tokens), _full_precision(conv_tokens))
        return out[0].to(conv_tokens.dtype), out[1].to(conv_tokens.dtype)

    def _embed(self, patch_tokens: torch.Tensor, conv_tokens: torch.Tensor) -> List[torch.Tensor]:
        attn = self.attention(patch_tokens, conv_tokens)
        x = _linear(conv_tokens, self.value.weight, self.value.bias)
        graph = build_graph(self.edges(attn), attn.shape[2], attn.dtype)
        nodes, edges = self.censnet(x, self.edge_features(attn, x, graph), graph)
        return [nodes, _edges_to_nodes(edges, graph) / 4]

    def attention(self, patch_tokens: torch.Tensor, conv_tokens: torch.Tensor) -> torch.Tensor:
        """Relation of every pair of nodes, (B, heads, N, N), rows summing to 1."""
        B, N, C = patch_tokens.shape
        q = (
            _linear(patch_tokens, self.q.weight, self.q.bias)
            .reshape(B, N, self.num_heads, C // self.num_heads)
            .transpose(1, 2)
        )
        k = (
            _linear(conv_tokens, self.k.weight, self.k.bias)
            .reshape(B, N, self.num_heads, C // self.num_heads)
            .transpose(1, 2)
        )
        eye = torch.eye(N, dtype=q.dtype, device=q.device)
        return ((q * self.dim**-0.5) @ k.transpose(2, 3) + eye).softmax(dim=3)

    def edges(self, attn: torch.Tensor) -> torch.Tensor:
        """The strongest entries of the mean attention, as ``i * N + j`` in ascending order, (B, E)."""
        return select_edges(attn.detach().mean(dim=1).flatten(1), self.num_edges)

    def edge_features(self, attn: torch.Tensor, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        """Attention of each head and their mean, nearness on the grid, nearness and cosine of features, (B, E, 6)."""
        N = x.shape[1]
        weight = attn.flatten(2).gather(2, graph.flat.unsqueeze(1).expand(-1, self.num_heads, -1)).transpose(1, 2)
        src = graph.flat // N
        dst = graph.flat % N
        rows = (src // self.grid_size - dst // self.grid_size).to(x.dtype)
        cols = (src % self.grid_size - dst % self.grid_size).to(x.dtype)
        near = 1 / ((rows.square() + cols.square()).sqrt() / 3 + 1)
        # all products of two nodes at once cost less than the ends of all edges side by side
        gram = torch.bmm(x, x.transpose(1, 2))
        dot = gram.flatten(1).gather(1, graph.flat)
        norm_i, norm_j = _ends(gram.diagonal(dim1=1, dim2=2).unsqueeze(2), graph)
        norm_i, norm_j = norm_i.squeeze(2), norm_j.squeeze(2)
        scale = self.dim // 2
        l2 = (((norm_i + norm_j - 2 * dot).clamp(min=0) + scale) / scale).rsqrt()
        cosine = (dot * (norm_i * norm_j).clamp(min=1e-16).rsqrt() + 1) / 2
        return torch.cat([weight, weight.mean(dim=2, keepdim=True), torch.stack([near, l2, cosine], dim=2)], dim=2)


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A linear layer in the precision of its input, whatever dtype its parameters have."""
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
