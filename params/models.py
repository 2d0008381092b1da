"""Pydantic models of every file under ``params/``: what a person may write, and nothing else.

Reading (inheritance, presets, command-line values, error messages) is in :mod:`params.reading`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

# One path component: what becomes a folder name below results/ must not be able to leave it.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
Colour = Annotated[float, Field(ge=0, le=1)]
RGB = tuple[Colour, Colour, Colour]


class Strict(BaseModel):
    """Base of all models: unknown keys are errors and values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Augmentation(Strict):
    """How normal training images are changed; validation and test images never are."""

    copies: int = Field(1, ge=1, le=50, description="changed copies beside each training image")
    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation_degrees: float = Field(0, ge=0, le=180, description="at most, either way")
    brightness: float = Field(0, ge=0, lt=1, description="factor between 1 - this and 1 + this")
    contrast: float = Field(0, ge=0, lt=1, description="factor between 1 - this and 1 + this")

    @model_validator(mode="after")
    def _changes_something(self) -> Augmentation:
        if not any(value for name, value in self if name != "copies"):
            raise ValueError("give a flip, rotation_degrees, brightness or contrast, or null")
        return self


class Protocol(Strict):
    """How images and masks are brought to the arrays that algorithms and metrics see."""

    image_size: int = Field(256, ge=32, le=4096, description="side in px of an algorithm's input")
    crop: float = Field(1.0, gt=0, le=1, description="centre fraction of each side that is kept")
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: RGB = (0.485, 0.456, 0.406)
    std: RGB = (0.229, 0.224, 0.225)
    evaluation_size: int = Field(256, ge=16, le=4096, description="side in px of masks and maps")
    augmentation: Augmentation | None = Field(None, description="of training images; null: none")


class Budget(Strict):
    """What an algorithm may spend."""

    train_seconds: float | None = Field(
        7200, gt=0, description="training wall time; null: no limit"
    )


class Checks(Strict):
    """What the index stage demands of a data set."""

    policy: Literal["fail", "skip"] = "fail"
    min_train_images: int = Field(10, ge=2)


class Pipeline(Strict):
    """How the pipeline works; no number depends on it."""

    package_versions: Literal["strict", "warn"] = Field(
        "strict", description="results of other versions of torch etc. are stale, or kept and named"
    )
    store_gb: float = Field(20, ge=0, description="cap of the store of finished results; 0: none")
    record: bool = Field(True, description="commit results to dvc.lock at a run's end")
    warm: bool = Field(True, description="fork CPU jobs from one process that has torch loaded")


Tracker = Literal["none", "wandb", "mlflow"]


class Logger(Strict):
    """A tracker to which finished results are logged; no number depends on it."""

    kind: Tracker = "none"
    project: Name = Field("visionad", description="W&B's project, MLflow's experiment")
    place: str | None = Field(
        None,
        description="mlflow: a tracking URI; wandb: a folder; null: below results/tracking/",
    )
    online: bool = Field(False, description="wandb: send runs to its server, too")


def _by_name(logger: Any) -> Any:
    return {"kind": logger} if isinstance(logger, str) else logger


class Page(Strict):
    """A Markdown page of results, beside published numbers."""

    path: str = Field(pattern=r"^docs/[A-Za-z0-9_\-]+\.md$")
    published: str | None = None
    notes: list[str] = Field([], description="what readers should know about data or settings")


class Benchmark(Strict):
    """One run: which algorithms, on which data, measured how."""

    title: str
    datasets: dict[Name, list[Name] | Literal["all"]] = Field(min_length=1)
    roots: dict[Name, str] = {}
    algorithms: list[Name] = Field(min_length=1)
    variant: Name | None = None
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0], min_length=1)
    metrics: list[Name] = Field(min_length=1)
    protocol: Protocol = Protocol()
    budget: Budget = Budget()
    checks: Checks = Checks()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pipeline: Pipeline = Pipeline()
    logger: Annotated[
        Logger, BeforeValidator(_by_name, json_schema_input_type=Tracker | Logger)
    ] = Logger()
    page: Page | None = None
    pretraining_images: str | None = Field(
        None,
        description="folder of images that teachers learn from (ImageNet); null: the training "
        "images of all the run's data sets, and the demo's",
    )
    textures: str | None = Field(
        None, description="folder of texture photographs (DTD); null: generated textures"
    )
    learning_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="also measure every algorithm after so many epochs (the paper's Figure 2)"
    )

    localisation: list[Name] = Field(
        [], description="algorithms of which PL is drawn, per category (the paper's Figures 3, 4)"
    )

    @model_validator(mode="after")
    def _drawn_are_run(self) -> Benchmark:
        for name in self.localisation:
            if name not in self.algorithms:
                raise ValueError(f"localisation: {name} is not among the run's algorithms")
        return self

    @model_validator(mode="after")
    def _ascending(self) -> Benchmark:
        if sorted(set(self.learning_epochs)) != list(self.learning_epochs):
            raise ValueError(f"learning_epochs must ascend, given: {self.learning_epochs}")
        return self

    @model_validator(mode="after")
    def _no_doubles(self) -> Benchmark:
        lists: dict[str, list[Any]] = {
            "algorithms": list(self.algorithms),
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
        }
        for dataset, categories in self.datasets.items():
            if categories != "all":
                lists[f"datasets.{dataset}"] = list(categories)
        for field, values in lists.items():
            doubled = sorted({str(value) for value in values if values.count(value) > 1})
            if doubled:
                raise ValueError(f"{field} names {', '.join(doubled)} more than once")
        return self


class Weights(Strict):
    """Where a backbone's weights come from. ``random`` is for tests only."""

    source: Literal["timm", "file", "package", "random"]
    path: str | None = Field(None, description="source file: a safetensors or torch state dict")
    package: str | None = Field(None, description="source package: the import name")
    file: str | None = Field(None, description="source package: the file inside it")
    keys: Literal["timm", "efficientnet_pytorch"] = "timm"
    seed: int = Field(0, description="source random: seed of the initialisation")

    @model_validator(mode="after")
    def _complete(self) -> Weights:
        needed = {"file": ("path",), "package": ("package", "file")}.get(self.source, ())
        for field in needed:
            if getattr(self, field) is None:
                raise ValueError(f"weights with source {self.source} need the key {field}")
        return self


class Backbone(Strict):
    """A timm model whose feature maps are computed once and shared."""

    model: str
    weights: Weights
    layers: dict[Name, int] = Field(
        min_length=1, description="name -> timm out_index, finest first"
    )
    mean: RGB
    std: RGB
    image_size: int | None = Field(None, ge=32, description="where the network dictates its own")
    dtype: Literal["float16", "float32"] = "float16"
    last_stage: int | None = Field(
        None,
        ge=0,
        description="EfficientNets: the stage, timm's blocks.<number>, that the coarsest layer "
        "ends with; later ones of its stride are left out",
    )
    padding: Literal["zeros", "reflect"] = "zeros"
    reduction: int = Field(1, ge=1, description="average-pooling factor before storing")
    scale: float = Field(
        1, gt=0, description="factor that brings features to the size of a ResNet's"
    )


class Demo(Strict):
    """The synthetic data set, drawn by a stage of ours."""

    kind: Literal["demo"]
    root: str
    categories: list[Name] = Field(min_length=1)
    licence: str | None = None
    image_size: int | None = Field(None, ge=32)
    seed: int = Field(0, ge=0)
    size: int = Field(256, ge=64, le=1024)
    train_good: int = Field(40, ge=2)
    test_good: int = Field(12, ge=0)
    per_defect: int = Field(8, ge=0)


class Mvtec(Strict):
    """A folder in MVTec's layout: ``<category>/{train/good,test/<type>,ground_truth/<type>}``."""

    kind: Literal["mvtec"]
    root: str
    categories: list[Name] | None = Field(None, description="null: every folder below the root")
    licence: str | None = None
    image_size: int | None = Field(None, ge=32, description="instead of the protocol's")


class Loco(Strict):
    """A folder in MVTec LOCO AD's layout: masks by defect, ``defects_config.json`` per category."""

    kind: Literal["loco"]
    root: str
    categories: list[Name] | None = Field(None, description="null: every folder below the root")
    licence: str | None = None
    image_size: int | None = Field(None, ge=32, description="instead of the protocol's")
    mean_of_types: list[Name] = Field(
        ["logical_anomalies", "structural_anomalies"],
        description="defect types whose mean is reported beside the value of all pooled",
    )


class Visa(Strict):
    """VisA as it is published: ``<category>/Data/...``, and a CSV that says what each image is."""

    kind: Literal["visa"]
    root: str
    categories: list[Name] = Field(min_length=1)
    licence: str | None = None
    image_size: int | None = Field(None, ge=32, description="instead of the protocol's")
    split_csv: str = Field("split_csv/1cls.csv", description="relative to the root")


AnyDataset = Demo | Mvtec | Loco | Visa
Dataset = Annotated[AnyDataset, Field(discriminator="kind")]


class Algorithm(Strict):
    """One row of the leaderboard: an algorithm, its features and its hyperparameters."""

    algorithm: Name
    backbone: Name | Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="whose features it reads, or which network it builds on; a list: ensemble"
    )
    layers: list[Name] = []
    teacher: Name | Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="of params/teachers/; a list: several"
    )
    base: Name | None = Field(None, description="the configuration that it builds upon, trained")
    validation: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of the training images that is held out for who calibrates by them, "
        "where the data set has no validation images",
    )
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    parameters: dict[str, Any] = {}

    @property
    def teachers(self) -> list[str]:
        """The names of all its teachers."""
        if self.teacher is None:
            return []
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher)

    @property
    def backbones(self) -> list[str]:
        """The names of all its backbones."""
        if self.backbone is None:
            return []
        return [self.backbone] if isinstance(self.backbone, str) else list(self.backbone)


class Teacher(Strict):
    """What is trained once, on images of all kinds, for algorithms that need a teacher."""

    teacher: Name = Field(description="its kind: a file of algorithms/teachers/")
    backbone: Name | None = Field(None, description="the network that it distils")
    layers: list[Name] = []
    image_size: int = Field(256, ge=32, le=4096)
    steps: int = Field(ge=0)
    batch_size: int = Field(16, ge=1)
    weights: str | None = Field(None, description="file of published weights, instead of training")
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _trained_or_published(self) -> Teacher:
        if (self.steps == 0) != (self.weights is not None):
            raise ValueError("give steps to train, or steps: 0 and a file of weights")
        return self


class Metric(Strict):
    """One column of the leaderboard: a metric of the catalogue and its parameters, resolved."""

    metric: Name
    parameters: dict[str, Any] = {}


class Metrics(Strict):
    """Parameters of the metrics; a name of one's own says by ``metric`` which one it is."""

    by_defect_type: bool = True
    parameters: dict[Name, dict[str, Any]] = {}


class Figures(Strict):
    """How figures look."""

    formats: list[Literal["svg", "pdf", "png"]] = Field(["svg", "pdf", "png"], min_length=1)
    dpi: int = Field(150, ge=50, le=600)
    colour_map: str = "inferno"
    sheet_rows: int = Field(6, ge=1, le=50)


class Comparison(Strict):
    """How sure values and differences are, and which tests compare algorithms."""

    resamples: int = Field(1000, ge=100, le=100_000, description="bootstrap resamples of images")
    confidence: float = Field(0.95, gt=0, lt=1, description="of intervals")
    alpha: float = Field(0.05, gt=0, lt=1, description="level of tests over categories")
    seed: int = Field(0, ge=0, lt=2**31, description="of what is drawn")


class Report(Strict):
    """What the report's gallery shows, and how large."""

    images_per_category: int = Field(24, ge=1, le=48, description="the same for all algorithms")
    image_side: int = Field(256, ge=64, le=320, multiple_of=16, description="of thumbnails, in px")
    map_side: int = Field(128, ge=32, le=320, multiple_of=16, description="of maps, in px")
    quality: int = Field(80, ge=1, le=100, description="of the thumbnails' WebP")
