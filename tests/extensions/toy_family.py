"""A model family in one file: images as flat vectors, residual MLPs, a linear head."""

import torch
from torch import Tensor, nn

from secateur.models.family import families
from secateur.models.taps import Tap
from secateur.models.types import Anatomy, Block, Branch, Cost, MlpShape, Rate
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights


class ToyBlock(nn.Module):
    """x + fc2(relu(fc1(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)
        self.added = nn.Identity()

    def forward(self, x_BND: Tensor) -> Tensor:
        """Add the update."""
        update: Tensor = self.added(self.fc2(self.act(self.fc1(x_BND))))
        return x_BND + update


class Toy(nn.Module):
    """One token per image."""

    def __init__(self, width: int = 16, hidden: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 4 * 4, width)
        self.blocks = nn.Sequential(*(ToyBlock(width, hidden) for _ in range(depth)))
        self.head = nn.Linear(width, 5)
        self.num_classes = 5

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of a batch."""
        stream_BND = self.embed(images_BCHW.flatten(1))[:, None]
        logits_BC: Tensor = self.head(self.blocks(stream_BND)[:, 0])
        return logits_BC


class ToyFamily:
    """The family of `Toy`."""

    name = "toy"
    title = "Toy"
    examples: tuple[str, ...] = ()

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Toy)

    def read(self, model: nn.Module) -> Anatomy:
        assert isinstance(model, Toy)
        width = model.head.in_features
        branches = [
            Branch(
                id=f"blocks.{index}",
                kind="mlp",
                block=index,
                width=width,
                tokens=1,
                shape=MlpShape(hidden=block.get_submodule("fc2").in_features),
                fixed=Rate(per_width=Cost(params=1)),
                per_hidden=Rate(base=Cost(params=1), per_width=Cost(params=2, macs=2)),
            )
            for index, block in enumerate(model.blocks)
            if isinstance(block, ToyBlock)
        ]
        return Anatomy(
            family=self.name,
            width=width,
            tokens=1,
            prefix_tokens=0,
            input_size=(3, 4, 4),
            num_classes=5,
            blocks=tuple(Block(id=b.id, index=b.block, branches=(b.id,)) for b in branches),
            branches=tuple(branches),
            ends=Rate(base=Cost(params=5), per_width=Cost(params=49 + 5, macs=48 + 5)),
        )

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        block = model.get_submodule(branch.id)
        return MlpWeights(
            readers_FD=(block.fc1.weight.detach(),),
            reader_biases_F=(block.fc1.bias.detach(),),
            w2_DF=block.fc2.weight.detach(),
            b2_D=block.fc2.bias.detach(),
        )

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        assert not isinstance(weights, AttentionWeights)
        block = model.get_submodule(branch.id)
        hidden, width = weights.shape.hidden, weights.w2_DF.shape[0]
        block.fc1, block.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        parts = (weights.readers_FD[0], weights.reader_biases_F[0], weights.w2_DF, weights.b2_D)
        with torch.no_grad():
            for parameter, value in zip(block.parameters(), parts, strict=True):
                parameter.copy_(value)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        for name in branches:
            model.blocks[int(name.split(".")[1])] = nn.Identity()

    @torch.no_grad()
    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        for index in reversed(range(branch.block)):
            if isinstance(model.blocks[index], ToyBlock):
                model.blocks[index].fc2.bias.add_(constant_D)
                return
        model.embed.bias.add_(constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        return None

    def writer_shift(self, model: nn.Module, branch: Branch) -> None:
        return None

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        return True

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        return model.embed(images_BCHW.flatten(1))[:, None]

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        return stream_BND

    def alone(self, model: nn.Module, branch: Branch) -> nn.Module:
        return model.get_submodule(branch.id)

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        return self.alone(model, branch)

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        return model.head(stream_BND[:, 0])

    def taps(self, model: nn.Module, branch: Branch) -> dict[str, Tap]:
        return {
            "stream": Tap(branch.id, "input"),
            "input": Tap(branch.id, "input"),
            "hidden": Tap(f"{branch.id}.fc2", "input"),
            "update": Tap(f"{branch.id}.added", "output"),
        }


families.register(ToyFamily.name)(ToyFamily())
