"""A model family in one file: images as flat vectors, residual MLPs, a linear head."""

from torch import Tensor, nn

from secateur.models.family import state
from secateur.models.statement import MlpLayer, Residual, Statement, Stem, Tail


class ToyBlock(nn.Module):
    """x + fc2(relu(fc1(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Add the update."""
        return x_BND + self.mlp(x_BND)


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
        return self.head(self.blocks(stream_BND)[:, 0])


MLP = MlpLayer(path="mlp", classes=("Sequential",), readers=("0",), writer="2")
state(
    Statement(
        name="toy",
        title="Toy",
        hosts=(f"{__name__}:Toy",),
        blocks="blocks.*",
        residuals={"ToyBlock": (Residual(layers=(MLP,)),)},
        stem=Stem(writer="embed"),
        tail=Tail(classifiers=("head",)),
        embed=lambda toy, images_BCHW: toy.embed(images_BCHW.flatten(1))[:, None],
        head=lambda toy, stream_BND: toy.head(stream_BND[:, 0]),
        image=lambda toy: (3, 4, 4),
        grid=lambda toy: (1, 1),
    )
)
