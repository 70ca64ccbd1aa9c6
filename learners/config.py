"""The sections of the run configuration that say what is learned and how.

`cluster.config` combines them with the sections on data, fleets and serving. The text under each
field is its documentation: `hero plan` prints it beside an unknown key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from common.config import DType, LocalPath, Section
from learners.data.preference_levels import MarginFrom
from learners.deepspeed_arguments import refuse_reserved_keys


class LoRAConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) by peft."""

    rank: int = Field(16, ge=1)
    """Rank r of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale: alpha / rank times the product of the two matrices is added to a weight."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter, for example q_proj. all-linear: every linear layer
    except the head."""
    last_layers: int | None = Field(None, ge=1)
    """Adapters in this many last layers alone: the backward pass ends there, and those before need no
    memory for it. Empty: in all layers."""


class ModelConfig(Section):
    path: LocalPath | None = None
    """A causal language model to start from: a local Hugging Face folder or a hub name. Empty:
    random weights."""
    layers: int = Field(2, ge=1)
    """Decoder layers of a model with random weights."""
    width: int = Field(256, ge=16)
    """Hidden size."""
    heads: int = Field(8, ge=1)
    """Attention heads; must divide the width."""
    kv_heads: int = Field(4, ge=1)
    """Key-value heads (grouped-query attention); must divide the heads."""
    vocab_size: Annotated[int, Field(ge=300)] | Literal["characters"] = 1280
    """Size of the byte-level BPE vocabulary that the pretrain stage trains. characters: one token
    for each character of the corpus."""
    context: int = Field(256, ge=16)
    """Longest sequence, prompt and response together, in tokens."""
    tie_embeddings: bool = True
    """Share the matrix of the input embedding and the output head."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Attention implementation of transformers in learners and scoring actors. Empty: the
    model's default."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass instead of keeping them:
    less memory, more time."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters of the linear layers and freeze the weights. Empty: train all
    weights."""
    chat_template: LocalPath | None = None
    """Jinja file of the chat template, in place of the tokenizer's own or for one that has none.
    Empty: the tokenizer's own."""
    end_token: str | None = None
    """Token that ends a turn, one that the chat template writes. Empty: the first special token
    that it writes after every turn."""
    pad_token: str | None = None
    """Token to pad with; it must differ from the end token. Empty: the tokenizer's own."""

    @property
    def approx_vocab_size(self) -> int:
        """Size of the vocabulary. That of characters is known only once the corpus is read: about
        100."""
        if self.vocab_size == "characters":
            return 100
        return self.vocab_size

    def inactive_keys(self) -> dict[str, str]:
        if not self.path:
            return {}
        # A model of a path brings its own sizes, and its tokenizer the vocabulary.
        of_new_models = ("layers", "width", "heads", "kv_heads", "vocab_size", "tie_embeddings")
        return dict.fromkeys(of_new_models, "no model.path")

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: each must divide "
                "the one before it"
            )
        return self


class OptimizerConfig(Section):
    kind: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: the matrices of the hidden layers by Muon (Jordan et al. 2024), whose updates
    are orthogonal matrices; embeddings, head and vectors by AdamW."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.02, gt=0)
    """Peak learning rate of Muon, in units of the spectral norm of an update."""
    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warm-up from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate decays after the warm-up, to `final_ratio` of the peak at the last step."""
    final_ratio: float = Field(0.1, ge=0, le=1)
    """Rate at the last step, as a fraction of the peak."""
    beta1: float = 0.9
    """AdamW beta 1."""
    beta2: float = 0.95
    """AdamW beta 2."""
    eps: float = 1e-8
    """AdamW epsilon."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to at most this global norm."""

    def inactive_keys(self) -> dict[str, str]:
        inactive = {}
        if self.schedule == "constant":
            inactive["final_ratio"] = "schedule: linear, cosine"
        if self.kind == "muon":
            # An orthogonal update has one size whatever the gradient's, and DeepSpeed would clip the
            # update in place of the gradient.
            inactive["clip_norm"] = "kind: adamw"
        else:
            inactive["muon_lr"] = "kind: muon"
        return inactive


class LearnerConfig(Section):
    ranks: int = Field(2, ge=1)
    """Number of learner actors: DeepSpeed data-parallel ranks."""
    threads: int = Field(1, ge=1)
    """CPU threads of each rank."""
    gpus: float | None = Field(None, ge=0, le=1)
    """GPUs of each rank: 1, or with one rank a fraction where fleets divide one GPU for good. Empty: 1 with
    cluster.device: cuda."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is sharded over the ranks. 1: optimizer state, 2: gradients too, 3:
    parameters too."""
    init: Literal["auto", "full", "sharded"] = "auto"
    """How models reach the ranks. full: each rank loads the whole model, then ZeRO cuts it. sharded (ZeRO
    3): rank 0 loads it in its own memory and every parameter is cut over the devices before the next one
    comes, so a model that fits on no device can be started. Both give the same weights. auto: sharded
    under ZeRO 3 on GPUs, else full."""
    offload_optimizer: bool = False
    """Keep AdamW's state on the CPU and run its step there (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep the parameters on the CPU and copy those of a layer to the device when it runs (ZeRO
    3)."""
    micro_batch_tokens: int = Field(4096, ge=16)
    """Largest number of tokens, padding included, in one forward pass of a rank, or of the ranks that
    share its rows (sequence_parallel)."""
    sequence_parallel: int = Field(1, ge=1)
    """Ranks that share the rows of a forward pass, each with a slice of every sequence (Ulysses, Jacobs et
    al. 2023): the activations of micro_batch_tokens are divided by it. It must divide `ranks` and the
    model's attention heads. 1: each rank has its own rows."""
    dtype: DType = "auto"
    """Precision of the supervised stages (pretrain, sft, reward). bfloat16 keeps float32 master
    weights. auto: what the machine multiplies fast."""
    packing: bool = True
    """Put several sequences in each row of a forward pass, so that there is little padding."""
    weights_dir: LocalPath | None = None
    """Folder through which weights reach the rollout engines by sync.transport file; learners and
    engines of all hosts must see it. Empty: shared memory of this machine, or the run directory where
    there is none."""

    deepspeed: dict[str, Any] = Field({})
    """Further keys of DeepSpeed's configuration, nested as there, for example zero_optimization:
    {zero_quantized_weights: true}. Keys that others set are refused."""

    @field_validator("deepspeed")
    @classmethod
    def _refuse_reserved(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        refuse_reserved_keys(deepspeed)
        return deepspeed

    @property
    def data_ranks(self) -> int:
        """Into how many parts the sequences of a batch are divided: ranks, or groups of ranks that share
        rows."""
        return self.ranks // self.sequence_parallel

    @model_validator(mode="after")
    def _whole_groups(self) -> LearnerConfig:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} does not divide ranks {self.ranks}: every group "
                "of ranks that share sequences is as large as the others"
            )
        return self

    def inactive_keys(self) -> dict[str, str]:
        inactive = {}
        # Below these stages DeepSpeed would accept the key and offload nothing.
        for key, least_stage in (("offload_optimizer", 1), ("offload_parameters", 3)):
            if self.zero_stage < least_stage:
                inactive[key] = f"learners.zero_stage of at least {least_stage}"
        if self.init == "sharded" and self.zero_stage < 3:
            inactive["init"] = "learners.zero_stage of 3"
        return inactive


class PretrainConfig(Section):
    steps: int = Field(800, ge=1)
    """Optimizer steps."""
    batch_tokens: int = Field(4096, ge=64)
    """Tokens of one optimizer step over all ranks."""
    sequence_length: int = Field(128, ge=16)
    """Length of the packed sequences."""
    validation_share: float = Field(0.02, gt=0, lt=0.5)
    """Share of the corpus held out for the validation loss."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, warmup_steps=20, weight_decay=0.1)
    """AdamW settings."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints of the learner state."""

    @model_validator(mode="after")
    def _divisible(self) -> PretrainConfig:
        below = self.batch_tokens // self.sequence_length * self.sequence_length
        if below == self.batch_tokens:
            return self
        # Rounding down silently would train on smaller batches than the config says.
        near = str(below + self.sequence_length)
        if below:
            near = f"{below} or {near}"
        raise ValueError(
            f"batch_tokens {self.batch_tokens} is not a multiple of sequence_length "
            f"{self.sequence_length}; {near} would work"
        )


class SFTConfig(Section):
    epochs: int = Field(2, ge=1)
    """Passes over the demonstrations."""
    batch_size: int = Field(64, ge=1)
    """Demonstrations in one optimizer step over all ranks."""
    validation_share: float = Field(0.05, gt=0, lt=0.5)
    """Share of the demonstrations held out for the validation loss."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3)
    """AdamW settings."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints of the learner state."""


class NamedModelConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name beside the results, for example sft-0."""
    path: LocalPath
    """Its model folder."""


class RewardModelConfig(Section):
    path: LocalPath | None = None
    """A sequence-classification folder with one output to start from, whose tokenizer and chat template may
    differ from the policy's. Empty: the SFT model with a new scalar head."""
    chat_template: LocalPath | None = None
    """Jinja file of the chat template that the model of `path` was trained with. Empty: its tokenizer's."""
    epochs: int = Field(1, ge=1)
    """Passes over the rankings. More than one overfits (Ouyang 2022, C.2)."""
    folds: int = Field(1, ge=1)
    """Cross-validation: before the final model, train one model for each fold of the prompts on
    all other folds, and report the accuracy over all folds. 1: no cross-validation."""
    batch_size: int = Field(16, ge=1)
    """Prompts (each with all its pairs) in one optimizer step over all ranks."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the prompts held out for the pair accuracy."""
    margin: float = Field(0.0, ge=0)
    """Margin of the ranking loss: by how much the scores of two responses should differ for each
    rank between them. 0: no margin."""
    margin_from: MarginFrom = "rank"
    """What the margin of two responses follows: rank, the margin for each rank between them; likert or
    strength, the whole margin for ratings three steps apart or "much better", two thirds, one third or none
    of it for less, and none where the labeler did not say."""
    labeler_weights: Literal["none", "dawid_skene"] = "none"
    """How much the rankings of a labeler count: all alike, or by how often he or she is right about pairs
    that others have ranked too (Dawid and Skene 1979)."""
    accuracy_by: list[str] = Field([])
    """Keys of rankings (for example round, group) by whose values the accuracy on held-out pairs is reported
    beside that on all of them: by the first key, and by each other one within it."""
    compare: list[NamedModelConfig] = Field([])
    """Other reward models whose accuracy on the same held-out pairs is reported beside this one's."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3)
    """AdamW settings."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints of the learner state."""

    def inactive_keys(self) -> dict[str, str]:
        inactive = {} if self.path else {"chat_template": "reward_model.path"}
        if not self.margin:
            inactive["margin_from"] = "reward_model.margin over 0"
        if not self.accuracy_by:
            inactive["compare"] = "reward_model.accuracy_by"
        return inactive
