"""All settings of Whence: one pydantic model of the one YAML.

The names, types, defaults and help texts here are the only definition there is: profiles in ``configs/`` are checked
against it, ``whence config show`` prints it, and the compiled pipelines take their form's defaults from it.
Unknown keys, wrong types and impossible combinations raise :class:`whence.errors.ConfigError` with the key's path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from whence.config.base import Fraction, Page, Positive, Section, Word
from whence.config.card import Card
from whence.config.cluster import Cluster
from whence.config.serving import Serving
from whence.yaml_text import write_yaml

BUILTIN_DEMO = "builtin:demo"
BUILTIN_CHAT = "builtin:chat"
BUILTIN_TINY_LLAMA = "builtin:tiny-llama"
S3_SCHEME = "s3://"

DataFormat = Literal["question_answer", "prompt_completion", "messages", "text"]
LossOn = Literal["answer", "last", "all"]
Metric = Literal[
    "accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "chrf", "loss", "perplexity",
    "prompt_exact_match", "prompt_token_f1", "prompt_rouge_l", "prompt_chrf", "mmlu",
]  # fmt: skip


def is_address(name: object) -> bool:
    """Whether ``name`` is an object or folder in storage (``s3://...``) and not a file here."""
    return str(name).startswith(S3_SCHEME)


class General(Section):
    seed: int = Field(0, ge=0, description="Seed of every random choice: data order, sampled labels, bootstrap.")
    max_length: Positive = Field(512, description="Longest sequence in tokens; prompts are cut to fit, answers never.")
    use_flash_attention: bool = Field(False, description="Use FlashAttention 2 (needs a CUDA device and flash-attn).")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run; auto takes CUDA if present.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of model weights in compute; auto is bfloat16 where the device has it."
    )
    processes: Positive | Literal["auto"] = Field(
        "auto",
        description="Processes of a task on one machine that share training, fitting, scoring and retraining, each "
        "with a device of its own; auto: as many as there are CUDA devices, or one.",
    )
    parallel_tasks: Positive | None = Field(
        None,
        description="Tasks that share fitting, scoring and retraining, each on its own node, a parameter of the "
        "compiled pipeline; null: one task each.",
    )
    work_dir: str | None = Field(
        None,
        description="Folder of checkpoints and finished work, reused by later runs with the same inputs; null: none.",
    )


class BaseModelRef(Section):
    name: str = Field(..., min_length=1, description=f"Hugging Face model name, a folder, or {BUILTIN_TINY_LLAMA}.")
    id: str = Field("base", min_length=1, description="Short name of the base model in tables and plots.")
    revision: str | None = Field(None, description="Commit, tag or branch of the model on the hub; pin it for good.")


class FinetunedModelRef(Section):
    path: str | None = Field(
        None, description="Folder the fine-tuned model is also saved to, and read from by `whence evaluate`."
    )
    id: str = Field("finetuned", min_length=1, description="Short name of the fine-tuned model in tables and plots.")


class Models(Section):
    base: BaseModelRef
    finetuned: FinetunedModelRef = Field(default_factory=lambda: FinetunedModelRef())

    @model_validator(mode="after")
    def _ids_differ(self) -> Models:
        if self.base.id == self.finetuned.id:
            raise ValueError(f"base.id and finetuned.id are both {self.base.id!r}; tables need two different names")
        return self


class Cleaning(Section):
    """What may be changed in texts, each kind counted; line breaks and indentation always stay."""

    unicode: Literal["NFC", "NFKC"] | None = Field(
        "NFC",
        description="Unicode form: NFC composes letters and accents, NFKC also replaces signs such as ½; null: none.",
    )
    remove_invisible: bool = Field(False, description="Remove control characters and marks such as soft hyphens.")
    single_spaces: bool = Field(
        False, description="Make runs of spaces and tabs within a line one space, and drop those at its end."
    )
    lowercase: bool = Field(False, description="Fold case of inputs (not of answers).")
    min_words: int = Field(1, ge=0, description="Rows whose input has fewer words are dropped and counted.")
    drop_duplicates: bool = Field(
        True, description="Drop exact duplicates, and training rows whose input looks like that of an evaluation row."
    )


class Dataset(Section):
    name: str | None = Field(
        None, description=f"Hugging Face dataset, {BUILTIN_DEMO} or {BUILTIN_CHAT}; null when files are given."
    )
    config_name: str | None = Field(None, description="Configuration of the hub dataset.")
    revision: str | None = Field(None, description="Commit, tag or branch of the hub dataset.")
    train_split: str = Field("train", description="Split of the hub dataset to train on.")
    eval_split: str = Field("validation", description="Split of the hub dataset to evaluate on.")
    train_files: list[str] = Field(
        default_factory=list, description="csv, jsonl or parquet files, folders, or s3:// addresses to train on."
    )
    eval_files: list[str] = Field(default_factory=list, description="The same for evaluation.")
    num_samples: Positive | None = Field(None, description="Training examples to keep (seeded choice); null keeps all.")
    num_eval_samples: Positive | None = Field(None, description="Evaluation examples to keep; null keeps all.")
    streaming: Positive | None = Field(
        None,
        description="Read so many rows of each hub split as a stream, shuffled by the seed, for a dataset that is too "
        "large for memory or disk; null: read it whole.",
    )
    format: DataFormat | None = Field(
        None,
        description="What rows are: question_answer (input_column in the template, output_column), prompt_completion "
        "(columns of these names, text or messages), messages (a column of conversations), text (input_column alone, "
        "loss on all of it); null: as the columns tell.",
    )
    chat_template: str | None = Field(
        None,
        description="Jinja template that prompts and answers go through as turns, or `tokenizer` for its own; null: "
        "the tokenizer's own for conversations, none for other rows.",
    )
    chat_template_kwargs: dict[Word, bool | int | float | str | None] = Field(
        default_factory=dict, description="Variables for the chat template, as in TRL (`enable_thinking: false`)."
    )
    input_column: str = Field("text", description="Column with the text the question is about.")
    output_column: str = Field("label", description="Column with the answer; class labels become their names.")
    id_column: str | None = Field(None, description="Column that names a row at its source; null numbers the rows.")
    source_column: str | None = Field(
        None,
        description="Column that says where a row is from, by which influences are also summed; null: its file's name.",
    )
    truth_column: str | None = Field(
        None, description="Column with the right answer where output_column may be wrong, to see if that is found."
    )
    label_names: dict[str, str] | None = Field(
        None, description="Answer text per value of output_column; null uses the values, or the hub's class names."
    )
    template: str = Field(
        "{input}\n\nQuestion: Which class does this text belong to?\nAnswer:",
        description="Prompt with {input} where the row's text goes; the answer follows after one space.",
    )
    loss_on: LossOn = Field(
        "answer",
        description="Tokens whose loss counts, in training, factors and scores alike: of a conversation all answers of "
        "the assistant (where it is given as prompt and completion, the last alone), or the last.",
    )
    cleaning: Cleaning = Field(default_factory=lambda: Cleaning())

    @property
    def chats(self) -> bool:
        """Whether prompts and answers are turns of a chat template."""
        return self.format == "messages" or self.chat_template is not None

    @field_validator("template")
    @classmethod
    def _template_has_input(cls, value: str) -> str:
        if value.count("{input}") != 1:
            raise ValueError(f"must contain {{input}} exactly once, found it {value.count('{input}')} times")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Dataset:
        if (self.name is None) == (not self.train_files):
            raise ValueError("set exactly one of dataset.name and dataset.train_files")
        if self.train_files and not self.eval_files:
            raise ValueError("dataset.train_files needs dataset.eval_files beside it, so that accuracy is held out")
        return self


class Prompts(Section):
    path: str | None = Field(
        None, description="JSON list (file or s3://): strings, or objects with prompt or input, reference."
    )
    items: list[str | dict[str, Any]] | None = Field(None, description="The prompts themselves, in place of a file.")

    @model_validator(mode="after")
    def _one_source(self) -> Prompts:
        if (self.path is None) == (self.items is None):
            raise ValueError("set exactly one of prompts.path and prompts.items")
        return self


class Lora(Section):
    """Adapters in place of new weights: low-rank matrices beside those of the base model, which stay as they are."""

    enabled: bool = Field(False, description="Train a LoRA adapter (peft) in place of all weights.")
    r: Positive = Field(16, description="Rank of the adapter's matrices.")
    alpha: float = Field(32.0, gt=0, description="Their product is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter while training.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="Modules that get one: last parts of their names; all-linear: every linear one but the head.",
    )
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules that are trained whole and saved with the adapter, e.g. lm_head for a new vocabulary; "
        "influence is over the adapter's matrices alone.",
    )
    merge: bool = Field(False, description="Save the model with the adapter merged into its weights.")
    quantize: Literal["4bit"] | None = Field(
        None, description="Keep the base model in 4 bits (QLoRA; CUDA and the extra qlora); null: as it is."
    )

    @model_validator(mode="after")
    def _merged_in_full(self) -> Lora:
        if self.merge and self.quantize:
            raise ValueError("training.lora.merge needs the base's weights in full, and quantize keeps 4 bits of them")
        return self


class Training(Section):
    """Names and meanings are those of ``transformers.TrainingArguments``."""

    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    per_device_train_batch_size: Positive = Field(
        8, description="Examples per step and device: a global batch is this x processes x gradient_accumulation_steps."
    )
    per_device_eval_batch_size: Positive = Field(16, description="Examples per evaluation step and device.")
    gradient_accumulation_steps: Positive = Field(1, description="Steps whose gradients are summed before an update.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay of AdamW.")
    lr_scheduler_type: str = Field(
        "cosine_with_restarts", description="Shape of the learning rate over time, one of transformers' SchedulerType."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    optim: str = Field("adamw_torch_fused", description="Optimizer, one of transformers' OptimizerNames.")
    bf16: bool | Literal["auto"] = Field("auto", description="Mixed bfloat16 training; auto where the device has it.")
    max_grad_norm: float | Literal["auto"] = Field(
        "auto", description="Gradient clipping; auto is none under bf16 and 1.0 otherwise; 0 is none."
    )
    save_steps: Positive = Field(100, description="Steps between checkpoints, from which a crashed run goes on.")
    save_total_limit: Positive = Field(2, description="Checkpoints kept.")
    logging_steps: Positive = Field(20, description="Steps between logged metrics.")
    eval_steps: Positive | None = Field(None, description="Steps between evaluations; null evaluates once an epoch.")
    dataloader_num_workers: int = Field(4, ge=0, description="Processes that prepare batches.")
    dataloader_drop_last: bool = Field(True, description="Drop the last incomplete batch of an epoch.")
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    lora: Lora = Field(default_factory=lambda: Lora())
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further TrainingArguments by name, e.g. {neftune_noise_alpha: 5}."
    )
    fsdp: bool = Field(
        False,
        description="Where several processes train: divide weights, gradients and optimizer state among them (FSDP2); "
        "false: each holds the whole (DDP).",
    )


class Factors(Section):
    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = Field("ekfac", description="Hessian approximation.")
    modules: Annotated[list[str], Field(min_length=1)] | Literal["mlp"] = Field(
        "mlp",
        description="Linear modules to track: last part of the module's name, or a glob over the full name; mlp: all "
        "of the layers but those of attention, and of a model with an adapter all of the adapter's.",
    )
    merge_adapter: bool = Field(
        False, description="Track the base's modules with the adapter merged into them, not the adapter's own."
    )
    layers: list[int] | Literal["all"] = Field("all", description="Transformer layers to track.")
    num_samples: Positive | None = Field(None, description="Analysis samples the factors are fitted on; null: all.")
    use_empirical_fisher: bool = Field(False, description="Use true labels in place of labels the model samples.")
    batch_size: Positive = Field(
        8, description="Examples of general.max_length per batch when fitting; of shorter ones, as many as fill it."
    )
    data_partitions: Positive | None = Field(
        None, description="Parts of the data, each saved when done so that a killed fit goes on; null: chosen."
    )
    covariance_module_partitions: Positive | None = Field(
        None, description="Groups of modules whose covariances are fitted in turn; null: as few as memory allows."
    )
    lambda_module_partitions: Positive | None = Field(
        None, description="Groups of modules whose lambda is fitted in turn; null: as few as memory allows."
    )


class Inspection(Section):
    layer: int = Field(0, ge=0, description="Transformer layer whose factors are plotted.")
    module: str | None = Field(
        None, description="One of factors.modules; null plots all that are tracked in the layer."
    )


class Scores(Section):
    use_generated: bool | Literal["both"] = Field(
        False, description="Queries: reference answers (false), the fine-tuned model's own answers (true), or both."
    )
    query_gradient_low_rank: Positive | None = Field(None, description="Rank of the query gradients; null: full rank.")
    query_batch_size: Positive = Field(
        8, description="Queries of general.max_length per batch; of shorter ones, as many as fill it."
    )
    train_batch_size: Positive = Field(
        8, description="Training examples of general.max_length per batch; of shorter ones, as many as fill it."
    )
    query_gradient_accumulation_steps: Positive | None = Field(
        None, description="Query batches scored in one pass over the training set; null: as many as memory allows."
    )
    data_partitions: Positive | None = Field(
        None, description="Parts of the training set, each saved when scored, so a killed run goes on; null: chosen."
    )
    damping_factor: float | None = Field(
        None, ge=0, description="Damping of the inverse; null is 0.1 x the mean eigenvalue of each module."
    )
    self_influence: bool = Field(True, description="Also score every training example on itself.")
    baselines: bool = Field(
        True,
        description="Also take plain gradients and embeddings in this pass, which validation.measures compare with.",
    )
    top_k: Positive = Field(20, description="Most helpful and most harmful examples listed per query.")
    detail: bool = Field(True, description="Also divide the listed scores among the example's tokens, and the modules.")


class Index(Section):
    """What a new question is compared with first, made in the pass that scores the run's own."""

    enabled: bool = Field(True, description="Make the index that `whence ask` answers from.")
    dimensions: int = Field(
        16384, ge=64, multiple_of=64, description="Numbers in the sketch of an example's gradient; more rank better."
    )
    bits: int = Field(1, ge=1, le=8, description="Bits kept of each; an example takes dimensions x bits / 8 bytes.")
    candidates: int = Field(50, ge=2, description="Examples scored exactly, half of them at each end of the ranking.")


class Generation(Section):
    max_new_tokens: Positive = Field(32, description="Longest answer in tokens.")
    do_sample: bool = Field(False, description="Sample in place of greedy decoding.")
    temperature: float = Field(1.0, gt=0, description="Softmax temperature when sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass when sampling.")
    batch_size: Positive = Field(
        16, description="Prompts of general.max_length per batch; of shorter ones, as many as fill it."
    )


class Mmlu(Section):
    enabled: bool = Field(True, description="Run the benchmark stage.")
    source: str = Field("hub", description=f"hub, a folder in Hendrycks' CSV layout, or {BUILTIN_DEMO}.")
    tasks: list[str] = Field(
        default_factory=lambda: ["professional_law", "business_ethics", "international_law"],
        min_length=1,
        description="Subjects of the benchmark.",
    )
    n_shots: int = Field(5, ge=0, le=5, description="Solved examples of the same subject before each question.")
    method: Literal["logprob", "generate"] = Field(
        "logprob", description="Rank the four letters by log-probability, or read the first letter of an answer."
    )
    base: bool = Field(False, description="Evaluate the base model.")
    finetuned: bool = Field(True, description="Evaluate the fine-tuned model.")
    max_questions: Positive | None = Field(None, description="Questions per task; null takes all.")

    @model_validator(mode="after")
    def _some_model(self) -> Mmlu:
        if self.enabled and not (self.base or self.finetuned):
            raise ValueError("evaluation.mmlu is enabled for neither the base nor the fine-tuned model")
        twice = next((task for task in self.tasks if self.tasks.count(task) > 1), None)
        if twice is not None:
            raise ValueError(f"evaluation.mmlu.tasks has {twice!r} twice, whose questions would count twice; keep one")
        return self


class Evaluation(Section):
    batch_size: Positive = Field(
        16, description="Examples of general.max_length per batch; of shorter ones, as many as fill it."
    )
    num_samples: Positive | None = Field(None, description="Evaluation rows answered by the models; null takes all.")
    bootstrap_samples: Positive = Field(1000, description="Resamples behind each confidence interval.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Confidence level of intervals.")
    mmlu: Mmlu = Field(default_factory=lambda: Mmlu())


Measure = Literal["planted", "mislabeled", "tail_patch", "stability", "counterfactual", "lds"]
CHEAP_MEASURES: tuple[Measure, ...] = ("planted", "mislabeled", "tail_patch")
ALL_MEASURES: tuple[Measure, ...] = get_args(Measure)
RETRAINING_MEASURES: tuple[Measure, ...] = ("counterfactual", "lds")
COMPARING_MEASURES: tuple[Measure, ...] = ("planted", "tail_patch", "lds")  # with all baselines


class Validation(Section):
    """How the evidence that attributions can be trusted is gathered."""

    measures: list[Measure] = Field(
        default_factory=lambda: list(CHEAP_MEASURES),
        description="What is measured: planted, mislabeled, tail_patch (cheap), stability (fits factors three times "
        "more), counterfactual and lds (train many times more); [] for nothing.",
    )
    top_k: Positive = Field(
        10, description="Examples of a query that recall looks at, that are stepped on, and that are left out."
    )
    tail_patch_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the tail patch; null is a tenth of training.learning_rate."
    )
    tail_patch_steps: Positive = Field(1, description="Further optimizer steps of the tail patch.")
    counterfactual_queries: Positive = Field(4, description="Queries whose top examples are left out (seeded choice).")
    counterfactual_seeds: Positive = Field(2, description="Seeds each counterfactual retraining is done with.")
    counterfactual_random: Positive = Field(2, description="Random sets left out for comparison; queries share them.")
    lds_subsets: int = Field(16, ge=3, description="Random subsets that models are trained on (Park et al. take 100).")
    lds_subset_share: float = Field(0.5, gt=0, lt=1, description="Share of the training examples in each subset.")
    lds_seeds: Positive = Field(1, description="Seeds whose outcomes are averaged for each subset.")
    processes: Positive | None = Field(
        None, description="Retrainings at a time; null: one per core, or one per accelerator where there is any."
    )


class Tracking(Section):
    uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking address: http(s) server or sqlite file.")
    ui_url: Page | None = Field(None, description="Where people open MLflow, for links to it; null: the same as uri.")
    kubeflow_url: Page | None = Field(
        None, description="Where people open Kubeflow Pipelines, for links from MLflow to it; null for none."
    )
    experiment: str = Field("whence", min_length=1, description="MLflow experiment.")
    registered_model: str = Field(
        "whence", min_length=1, description="Registered model that gets a version per new model, and the champion."
    )
    retry_seconds: float = Field(
        10.0, ge=0, description="How long a call is retried before it is kept on disk and uploaded later."
    )
    wandb: bool = Field(False, description="Also report training to Weights & Biases when wandb is installed.")

    def run_page(self, run: str) -> str | None:
        """Where Kubeflow's UI shows a run; None without ``kubeflow_url``."""
        return f"{self.kubeflow_url.rstrip('/')}/#/runs/details/{run}" if self.kubeflow_url else None


class Retraining(Section):
    """When a new model takes the champion's place; the rule is that of :func:`whence.evaluation.gate.decide`."""

    metric: Metric | Literal["auto"] = Field(
        "auto",
        description="What a new model must be better at; auto: accuracy of classes, token_f1 of short answers, rouge_l "
        "of long ones.",
    )
    min_gain: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="The lower bound of its gain must be above this; negative: as good will do.",
    )
    max_loss: dict[Metric, Fraction] | Literal["auto"] = Field(
        "auto",
        description="Guarded metrics: the lower bound of each gain may be this far below 0; auto: 0.02 for both that "
        "fit the answers (macro_f1 beside accuracy, exact_match beside token_f1, chrf beside rouge_l), mmlu 0.05.",
    )
    explain: Literal["champion", "always"] = Field(
        "champion", description="Factors, scores and report: of a new champion only, or of refused models, too."
    )

    @property
    def use_mmlu(self) -> bool:
        """Whether the benchmark has a part in the decision."""
        return self.metric == "mmlu" or self.max_loss == "auto" or "mmlu" in self.max_loss


class Config(Section):
    """The whole YAML. Build it with :func:`load_config` or :func:`parse_config`, never by hand."""

    profile: str = Field("custom", description="Name of this profile.")
    general: General = Field(default_factory=lambda: General())
    models: Models
    dataset: Dataset
    prompts: Prompts
    training: Training = Field(default_factory=lambda: Training())
    factors: Factors = Field(default_factory=lambda: Factors())
    inspection: Inspection = Field(default_factory=lambda: Inspection())
    scores: Scores = Field(default_factory=lambda: Scores())
    index: Index = Field(default_factory=lambda: Index())
    generation: Generation = Field(default_factory=lambda: Generation())
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation())
    validation: Validation = Field(default_factory=lambda: Validation())
    tracking: Tracking = Field(default_factory=lambda: Tracking())
    retraining: Retraining = Field(default_factory=lambda: Retraining())
    card: Card = Field(default_factory=lambda: Card())
    serving: Serving = Field(default_factory=lambda: Serving())
    cluster: Cluster = Field(default_factory=lambda: Cluster())

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        if self.factors.layers != "all" and self.inspection.layer not in self.factors.layers:
            raise ValueError(
                f"inspection.layer {self.inspection.layer} is not among factors.layers {self.factors.layers}; "
                "inspect a layer whose factors are fitted"
            )
        if self.training.fsdp and self.training.lora.enabled and self.training.lora.merge:
            raise ValueError("training.lora.merge needs the weights in one place, and training.fsdp divides them")
        if self.factors.merge_adapter and self.training.lora.quantize:
            raise ValueError(
                "factors.merge_adapter needs the base's weights in full, and training.lora.quantize keeps 4 bits"
            )
        comparing = [name for name in self.validation.measures if name in COMPARING_MEASURES]
        if comparing and not self.scores.baselines:
            raise ValueError(
                f"validation.measures has {', '.join(comparing)}, which compare with what scores.baselines takes, and "
                "that is false; set it to true, or leave these measures out"
            )
        if self.retraining.metric == "mmlu" and not self.evaluation.mmlu.enabled:
            raise ValueError("retraining.metric is mmlu, and evaluation.mmlu.enabled is false; enable it")
        if self.cluster.work_claim is not None and not (self.general.work_dir or "").startswith("/"):
            raise ValueError(
                f"cluster.work_claim {self.cluster.work_claim!r} is mounted at general.work_dir, which is "
                f"{self.general.work_dir!r}; set that to an absolute path, e.g. /work/kept"
            )
        if self.generation.max_new_tokens >= self.general.max_length:
            raise ValueError(
                f"generation.max_new_tokens {self.generation.max_new_tokens} leaves no room for a prompt within "
                f"general.max_length {self.general.max_length}"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved configuration, every value explicit."""
        return write_yaml(self.model_dump(mode="json"))
