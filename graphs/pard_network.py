r"""Networks of PARD: one denoises every block of a graph, one says how large the next block is.

A graph is generated block by block, see :mod:`sci.graphs.pard_layout`. The denoiser predicts the
classes of all nodes of block b, of the pairs inside it, and of those to earlier blocks, from their
noised classes and the clean earlier blocks. It is called in two ways, which agree:

- training: the noised graph and the clean graph together; one pass gives the logits of all blocks;
- sampling: a single graph whose last block is noised; the logits of that block are meant.

The second network sees a clean graph and predicts after each of its blocks the size of the next one
(0: the graph is complete) and, given that size, the degree of its nodes. It may stand on the
denoiser's trunk, or have its own.

References:
    | Pard: permutation-invariant autoregressive diffusion for graph generation
      (Zhao, Ding, Akoglu, 2024)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sci.graphs.pairs import pair_index
from sci.graphs.pard_heads import (
    BlockHead,
    DenoisingHead,
    Encoder,
    NetworkSize,
    Rise,
    initialise,
    waves,
)
from sci.graphs.pard_layers import Perceptron
from sci.graphs.pard_layout import BlockLayout

__all__ = ["BlockNetwork", "DenoisingNetwork", "NetworkSize"]

Logits = tuple[Tensor, Tensor]
BlockLogits = tuple[Tensor, Tensor, Tensor]


class DenoisingNetwork(nn.Module):
    r"""Logits of the clean classes of blocks from noised ones and the clean blocks before.

    Arguments:
        node_states, edge_states: Classes that come in, those of noise included.
        max_blocks: Most blocks of a graph; later ones count as the last of these.
        max_degree: Largest degree of a block; larger ones count as this.
        steps: Diffusion steps that the path time t in [0, 1] stands for; the time embedding sees
            steps (1 - t), so that a grid of this many steps gives integers.
        size: Widths and options.
        node_classes, edge_classes: Classes that come out, the first of those that come in;
            default: all.
        timed: Which nodes know the time: "noised" ones only, so that what is computed on clean
            blocks does not depend on the time; "all"; or "published", all of them by an embedding
            whose frequencies are cut to integers, which leaves the sine and cosine of the step.
        residual: Whether a rising function of t times the one-hot input is added to the logits.
        max_size: Where given, a :class:`BlockHead` for blocks of at most this size stands on the
            same trunk; asks for ``timed="noised"``.

    Raises:
        ValueError: for an unknown `timed`, or both a block head and a time on clean blocks.

    Example:
        >>> network = DenoisingNetwork(4, 4, max_blocks=3, max_degree=4, steps=20)
        >>> nodes = torch.zeros(1, 3, dtype=torch.long)
        >>> edges = torch.zeros(1, 3, 3, dtype=torch.long)
        >>> blocks, degrees = torch.tensor([[0, 0, 1]]), torch.tensor([[1, 1]])
        >>> t = torch.tensor([0.5])
        >>> logits = network(nodes, edges, blocks, degrees, t, clean=(nodes, edges))
        >>> [tuple(part.shape) for part in logits]
        [(1, 3, 4), (1, 3, 4)]
    """

    def __init__(
        self,
        node_states: int,
        edge_states: int,
        max_blocks: int,
        max_degree: int,
        steps: int,
        size: NetworkSize | None = None,
        node_classes: int | None = None,
        edge_classes: int | None = None,
        timed: str = "noised",
        residual: bool = True,
        max_size: int | None = None,
    ):
        super().__init__()
        size = NetworkSize() if size is None else size
        if timed not in ("noised", "all", "published"):
            raise ValueError(f'timed is {timed!r}: choose "noised", "all" or "published"')
        if timed != "noised" and max_size is not None:
            raise ValueError(
                f"a block head sees clean graphs, which have no time, but timed is {timed!r}: "
                'give timed="noised", or max_size=None and a BlockNetwork of its own'
            )
        width = size.node_width
        self.steps, self.max_degree, self.timed = steps, max_degree, timed
        self.encoder = Encoder(node_states, edge_states, max_blocks, size)
        self.degree = nn.Embedding(max_degree + 1, width)
        self.time = Perceptron(width, width, width)
        self.trunk = size.trunk()
        self.head = DenoisingHead(node_classes or node_states, edge_classes or edge_states, size)
        self.block_head = None if max_size is None else BlockHead(max_size, max_degree, size)
        initialise(self, size.norm)
        self.node_rise = Rise() if residual else None
        self.edge_rise = Rise() if residual else None

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        degrees: Tensor,
        t: Tensor,
        clean: tuple[Tensor, Tensor] | None = None,
        context: Tensor | None = None,
    ) -> Logits:
        """Logits of the clean classes.

        Arguments:
            nodes: Noised classes, (B, n) integers, or probabilities (B, n, node_states).
            edges: Noised classes, (B, n, n) integers, symmetric, any diagonal; or probabilities
                (B, n, n, edge_states).
            blocks: Block number of each node, (B, n) integers; -1 where there is no node.
            degrees: Degree of each block, (B, G) integers, G at least the number of blocks.
            t: Path time, (B,), in [0, 1].
            clean: Clean nodes and edges, of the same shapes and types. With them, block b is
                denoised given the clean blocks before it, for all b at once. Without, everything
                before the last block of `nodes` and `edges` is taken as clean.
            context: What the graph is conditioned on, (B, context); None: nothing.

        Returns:
            Logits of nodes (B, n, node_classes) and of pairs (B, P, edge_classes) in the order of
            :func:`sci.graphs.pairs.pair_index`. Without `clean` those of the last block and its
            pairs count; entries of padding mean nothing.
        """
        hidden = self._denoise(nodes, edges, blocks, degrees, t, clean, context)
        return self._logits(hidden, nodes, edges, t)

    def both(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        degrees: Tensor,
        t: Tensor,
        clean: tuple[Tensor, Tensor],
        sizes: Tensor,
        context: Tensor | None = None,
    ) -> tuple[Logits, BlockLogits]:
        """Logits of :meth:`forward` and of the block head, from one pass through the trunk.

        Arguments:
            sizes: Size of each block, (B, G), 0 behind the last. The others as in :meth:`forward`.

        Returns:
            What :meth:`forward` returns, and what :meth:`BlockHead.forward` returns.
        """
        head = self._block_head()
        hidden = self._denoise(nodes, edges, blocks, degrees, t, clean, context)
        return self._logits(hidden, nodes, edges, t), head(*hidden, blocks, sizes)

    def known(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        degrees: Tensor,
        count: int,
        context: Tensor | None = None,
    ) -> Tensor:
        """What the block head knows after each of the first `count` blocks, (B, count, H).

        Arguments:
            nodes, edges: Clean classes. The others as in :meth:`forward`.

        Returns:
            Input of the methods `sizes` and `degrees` of `block_head`.
        """
        head = self._block_head()
        stacked = nodes.unsqueeze(1), edges.unsqueeze(1)
        hidden = self._hidden(*stacked, blocks, degrees, None, context)
        return head.represent(*hidden, blocks, count)

    def _denoise(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        degrees: Tensor,
        t: Tensor,
        clean: tuple[Tensor, Tensor] | None,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor, BlockLayout]:
        """Last hidden layer of the single graph, or of the clean and the noised one."""
        if clean is None:
            stacked = nodes.unsqueeze(1), edges.unsqueeze(1)
            timed = (blocks == blocks.amax(1, keepdim=True)).unsqueeze(1)
        else:
            stacked = torch.stack((clean[0], nodes), 1), torch.stack((clean[1], edges), 1)
            timed = torch.arange(2, device=nodes.device)[None, :, None] > 0
        step = self.steps * (1 - t.to(self.degree.weight.dtype))
        turns = waves(step, self.degree.embedding_dim, 1e4, whole=self.timed == "published")
        time = self.time(turns.roll(turns.shape[-1] // 2, -1))[:, None, None]
        if self.timed == "noised":
            time = time * timed.unsqueeze(-1)
        return self._hidden(*stacked, blocks, degrees, time, context)

    def _hidden(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        degrees: Tensor,
        time: Tensor | None,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor, BlockLayout]:
        """Last hidden layer of stacked graphs (B, K, ...), to whose nodes `time` is added."""
        layout = BlockLayout(blocks, nodes.shape[1], self.degree.weight.dtype)
        hidden, pairs = self.encoder(nodes, edges, blocks, context)
        degree = degrees.gather(1, blocks.clamp(min=0)).clamp(0, self.max_degree)
        hidden = hidden + self.degree(degree).unsqueeze(1)
        if time is not None:
            hidden = hidden + time
        return *self.trunk(hidden, pairs, layout), layout

    def _logits(
        self, hidden: tuple[Tensor, Tensor, BlockLayout], nodes: Tensor, edges: Tensor, t: Tensor
    ) -> Logits:
        """Logits of the denoising head and, where wanted, the input added to them."""
        node_logits, edge_logits = self.head(*hidden)
        if self.node_rise is None or self.edge_rise is None:
            return node_logits, edge_logits
        smaller, larger = (end.to(nodes.device) for end in pair_index(nodes.shape[1]))
        time = t.to(self.degree.weight.dtype)
        return (
            _raised(node_logits, nodes, self.node_rise(time)),
            _raised(edge_logits, edges[:, smaller, larger], self.edge_rise(time)),
        )

    def _block_head(self) -> BlockHead:
        if self.block_head is None:
            raise ValueError("the network has no block head: make it with max_size, see its help")
        return self.block_head


def _raised(logits: Tensor, classes: Tensor, height: Tensor) -> Tensor:
    """Logits with `height` (B,) added to those of the class that came in, if it can come out."""
    height = height[:, None, None]
    if classes.is_floating_point():
        return logits + height * classes[..., : logits.shape[-1]]
    which = torch.arange(logits.shape[-1], device=logits.device)
    return logits + height * (classes.unsqueeze(-1) == which)


class BlockNetwork(nn.Module):
    """Size and degree of the next block of clean graphs, on a trunk of its own.

    Arguments:
        node_classes, edge_classes: Classes that come in.
        max_blocks: Most blocks of a graph; later ones count as the last of these.
        max_size: Largest size of a block.
        max_degree: Largest degree of a block.
        size: Widths and options.
    """

    def __init__(
        self,
        node_classes: int,
        edge_classes: int,
        max_blocks: int,
        max_size: int,
        max_degree: int,
        size: NetworkSize | None = None,
    ):
        super().__init__()
        size = NetworkSize() if size is None else size
        self.encoder = Encoder(node_classes, edge_classes, max_blocks, size)
        self.trunk = size.trunk()
        self.block_head = BlockHead(max_size, max_degree, size)
        initialise(self, size.norm)

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        sizes: Tensor,
        context: Tensor | None = None,
    ) -> BlockLogits:
        """Logits after every block of complete graphs, for training.

        Arguments:
            nodes, edges, blocks, context: As for :class:`DenoisingNetwork`, clean.
            sizes: Size of each block, (B, G), 0 behind the last.

        Returns:
            What :meth:`sci.graphs.pard_heads.BlockHead.forward` returns.
        """
        hidden = self._hidden(nodes, edges, blocks, context)
        return self.block_head(*hidden, blocks, sizes)

    def known(
        self,
        nodes: Tensor,
        edges: Tensor,
        blocks: Tensor,
        count: int,
        context: Tensor | None = None,
    ) -> Tensor:
        """What is known after each of the first `count` blocks, (B, count, H).

        Returns:
            Input of the methods `sizes` and `degrees` of `block_head`.
        """
        hidden = self._hidden(nodes, edges, blocks, context)
        return self.block_head.represent(*hidden, blocks, count)

    def _hidden(
        self, nodes: Tensor, edges: Tensor, blocks: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, BlockLayout]:
        layout = BlockLayout(blocks, 1, self.encoder.node_table.dtype)
        hidden, pairs = self.encoder(nodes.unsqueeze(1), edges.unsqueeze(1), blocks, context)
        return *self.trunk(hidden, pairs, layout), layout
