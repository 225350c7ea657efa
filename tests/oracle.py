"""CensNet written out with dense matrices, one image after another: the form that the incidence form must equal.

Every matrix of the definition is formed, diagonal ones included, and multiplied as a matrix. That is slow and needs
E x E memory, which is why it lives beside the tests; the benchmark uses it as the baseline.

Notation of one image: N nodes, E edges, ``src`` and ``dst`` the ends of each edge, x node features (N, C),
z edge features (E, D).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from tcgn_hub.models.censnet import CensNet, CensNetLayer, EdgeLayer, Graph, GraphEmbed, NodeLayer, build_graph


def incidence(src: torch.Tensor, dst: torch.Tensor, num_nodes: int, dtype: torch.dtype) -> torch.Tensor:
    """T (N x E): how many times a node is an end of an edge, 2 for a self-loop."""
    T = torch.zeros(num_nodes, len(src), dtype=dtype, device=src.device)
    edge = torch.arange(len(src), device=src.device)
    T[src, edge] += 1
    T[dst, edge] += 1
    return T


def adjacency(src: torch.Tensor, dst: torch.Tensor, num_nodes: int, dtype: torch.dtype) -> torch.Tensor:
    """Adj (N x N): 1 where there is an edge from row to column."""
    adj = torch.zeros(num_nodes, num_nodes, dtype=dtype, device=src.device)
    adj[src, dst] = 1
    return adj


def normalised_adjacency(adj: torch.Tensor) -> torch.Tensor:
    """A_hat = D^-1/2 Adj D^-1/2, D the row sums; a node without outgoing edges has 0 in D^-1/2."""
    degree = adj.sum(1)
    inverse_root = torch.diag(torch.where(degree > 0, degree**-0.5, 0))
    return inverse_root @ adj @ inverse_root


def edges_sharing_a_node(src: torch.Tensor, dst: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """L (E x E): 1 where two edges share a node, so also on the diagonal."""
    e, f = (src[:, None], dst[:, None]), (src[None], dst[None])
    return ((e[0] == f[0]) | (e[0] == f[1]) | (e[1] == f[0]) | (e[1] == f[1])).to(dtype)


def normalised_edge_adjacency(L: torch.Tensor) -> torch.Tensor:
    """A_e_hat = D_e^-1/2 L D_e^-1/2, D_e the row sums of L, plus 1."""
    inverse_root = torch.diag((L.sum(1) + 1) ** -0.5)
    return inverse_root @ L @ inverse_root


def _with_unit_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix * (1 - eye) + eye


def node_strength(T: torch.Tensor, z: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """M (N x N) = T diag(Z p) T' with its diagonal replaced by 1."""
    return _with_unit_diagonal(T @ torch.diag((z @ p.T).flatten()) @ T.T)


def edge_strength(T: torch.Tensor, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """M_e (E x E) = T' diag(X p) T with its diagonal replaced by 1."""
    return _with_unit_diagonal(T.T @ torch.diag((x @ p.T).flatten()) @ T)


def edge_matrix(T: torch.Tensor, x: torch.Tensor, p: torch.Tensor, norm_edge_adj: torch.Tensor) -> torch.Tensor:
    """F (E x E) = M_e o A_e_hat."""
    return edge_strength(T, x, p) * norm_edge_adj


def column_maximum(F: torch.Tensor) -> torch.Tensor:
    """The maximum of each column, (1, E)."""
    return F.amax(0, keepdim=True)


def node_layer(
    layer: CensNetLayer, x: torch.Tensor, z: torch.Tensor, T: torch.Tensor, norm_adj: torch.Tensor
) -> torch.Tensor:
    """X' = (M o A_hat) (X W) + b"""
    M = node_strength(T, z, layer.p.to(x.dtype))
    return (M * norm_adj) @ (x @ layer.weight.to(x.dtype)) + layer.bias.to(x.dtype)


def edge_layer(
    layer: CensNetLayer, x: torch.Tensor, z: torch.Tensor, T: torch.Tensor, norm_edge_adj: torch.Tensor
) -> torch.Tensor:
    """Z' = (F / colmax F) (Z W) + b"""
    F = edge_matrix(T, x, layer.p.to(x.dtype), norm_edge_adj)
    return (F / column_maximum(F)) @ (z @ layer.weight.to(x.dtype)) + layer.bias.to(x.dtype)


def ends(graph: Graph, image: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ends of the edges of one image, as nodes of that image."""
    num_nodes = graph.adj.shape[1]
    return graph.flat[image] // num_nodes, graph.flat[image] % num_nodes


def literal_node_layer(layer: NodeLayer, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> torch.Tensor:
    """``NodeLayer.forward`` in matrix form."""
    N = graph.adj.shape[1]
    out = []
    for b in range(len(x)):
        src, dst = ends(graph, b)
        norm_adj = normalised_adjacency(adjacency(src, dst, N, x.dtype))
        out.append(node_layer(layer, x[b], z[b], incidence(src, dst, N, x.dtype), norm_adj))
    return torch.stack(out)


def literal_edge_layer(layer: EdgeLayer, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> torch.Tensor:
    """``EdgeLayer.forward`` in matrix form."""
    N = graph.adj.shape[1]
    out = []
    for b in range(len(x)):
        src, dst = ends(graph, b)
        norm_edge_adj = normalised_edge_adjacency(edges_sharing_a_node(src, dst, x.dtype))
        out.append(edge_layer(layer, x[b], z[b], incidence(src, dst, N, x.dtype), norm_edge_adj))
    return torch.stack(out)


class LiteralCensNet(CensNet):
    """CensNet with the same parameters and arguments, in matrix form, one image after another."""

    def forward(self, x: torch.Tensor, z: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
        out = [self._forward_one(x[b], z[b], *ends(graph, b)) for b in range(len(x))]
        return torch.stack([nodes for nodes, _ in out]), torch.stack([edges for _, edges in out])

    def _forward_one(
        self, x: torch.Tensor, z: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        T = incidence(src, dst, len(x), x.dtype)
        norm_adj = normalised_adjacency(adjacency(src, dst, len(x), x.dtype))
        norm_edge_adj = normalised_edge_adjacency(edges_sharing_a_node(src, dst, x.dtype))
        x, z = self.drop(node_layer(self.node1, x, z, T, norm_adj).relu()), self.drop(z.relu())
        z, x = self.drop(edge_layer(self.edge, x, z, T, norm_edge_adj).relu()), self.drop(x)
        return node_layer(self.node2, x, z, T, norm_adj), z


class LiteralGraphEmbed(GraphEmbed):
    """GraphEmbed around the matrix form: CensNet, and the edges summed at their nodes as (T Z) / 4."""

    def _embed(self, patch_tokens: torch.Tensor, conv_tokens: torch.Tensor) -> list[torch.Tensor]:
        attn = self.attention(patch_tokens, conv_tokens)
        x = nn.functional.linear(conv_tokens, self.value.weight.to(attn.dtype), self.value.bias.to(attn.dtype))
        num_nodes = attn.shape[2]
        graph = build_graph(self.edges(attn), num_nodes, attn.dtype)
        nodes, edges = self.censnet(x, self.edge_features(attn, x, graph), graph)
        at_nodes = [incidence(*ends(graph, b), num_nodes, edges.dtype) @ edges[b] / 4 for b in range(len(edges))]
        return [nodes, torch.stack(at_nodes)]


def literal_model(model: nn.Module) -> nn.Module:
    """A deep copy of a TCGN model that computes its two graphs in matrix form."""
    model = copy.deepcopy(model)
    # the literal classes add no state, so the copy keeps its parameters, buffers, hooks and mode
    for module in list(model.modules()):
        if type(module) is GraphEmbed:
            module.__class__ = LiteralGraphEmbed
        elif type(module) is CensNet:
            module.__class__ = LiteralCensNet
    return model
