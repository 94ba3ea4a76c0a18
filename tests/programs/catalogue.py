"""The programs of the suite: which there are, what each is of, and how its numbers compare with the CPU's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DRIVERS = Path(__file__).with_name("drivers")

EQUAL = "equal"
"""Every number and every bit of the weights is that of the same program on the CPU."""
RANDOM = "random numbers of its own"
"""It draws random numbers on the device, whose generator is not the CPU's: finite, and the same in two runs."""
MIXED = "16 bits"
"""It computes in 16 bits on CUDA, and in 32 on the CPU: finite, and the same in two runs."""

CLOSE = "nearly the CPU's"
"""Some op is computed as on CUDA, and not as on the CPU: the numbers are the CPU's within a ten-thousandth.  Of the
weights there is a hash alone, which is not looked at."""


@dataclass(frozen=True)
class Program:
    """A driver in drivers/ and what to expect of it."""

    name: str
    package: str
    """The distribution whose code it runs."""
    does: str
    numbers: str = EQUAL

    @property
    def path(self) -> Path:
        """The script."""
        return DRIVERS / f"{self.name}.py"


PROGRAMS = (
    Program("trainer_gpt2", "transformers", "Trainer: training, evaluation, checkpoint and resuming"),
    Program("trainer_bert_fp16", "transformers", "Trainer with fp16 and a gradient scaler", MIXED),
    Program("trainer_llama_bf16", "transformers", "Trainer with bf16, accumulation and checkpointing", MIXED),
    Program("generate_greedy", "transformers", "generate: greedy and by beams"),
    Program("generate_sampling", "transformers", "generate: sampling with top-k and top-p", RANDOM),
    Program("seq2seq_t5", "transformers", "Seq2SeqTrainer: Adafactor, evaluation and prediction by generate"),
    Program("accelerate_loop", "accelerate", "accumulation, clipping, gathered metrics, save_state and load_state"),
    Program("lightning_fit", "lightning", "Trainer: fit, validation, early stopping, checkpoints, test and predict"),
    Program("lightning_fp16", "lightning", "Trainer in 16-mixed, resumed from a checkpoint", MIXED),
    Program("fabric_loop", "lightning", "Fabric: a loop, clipping, save and load"),
    Program("timm_training", "timm", "ConvNeXt with LAMB, a schedule, ModelEmaV3 and adaptive clipping"),
    Program("timm_mixup_amp", "timm", "ViT with mixup, stochastic depth and NativeScaler", MIXED),
    Program("torchvision_classification", "torchvision", "ResNet-18 with v2 transforms, a checkpoint and evaluation"),
    Program("torchvision_detection", "torchvision", "Faster R-CNN: training and boxes", RANDOM),
    Program("torchvision_segmentation", "torchvision", "LR-ASPP and its intersection over union", RANDOM),
    Program("sentence_embeddings", "sentence-transformers", "its trainer, encode and semantic_search"),
    Program("diffusers_training", "diffusers", "UNet2DModel with DDPMScheduler and EMAModel", CLOSE),
    Program("diffusers_pipeline", "diffusers", "DDPM and DDIM pipelines"),
    Program("peft_lora", "peft", "LoRA: training, saving, loading and merging"),
    Program("trl_sft", "trl", "SFTTrainer with evaluation"),
    Program("sb3_ppo", "stable-baselines3", "PPO and A2C: rollouts, training, evaluation, save and load", RANDOM),
    Program("sb3_off_policy", "stable-baselines3", "DQN, SAC and TD3 with replay buffers", RANDOM),
    Program("pyg_nodes", "torch-geometric", "GCN and GAT on one graph, with masks"),
    Program("pyg_graphs", "torch-geometric", "GraphSAGE and GIN on batches of graphs"),
    Program("generate_static_fp16", "transformers", "generate in fp16: assisted, with processors and scores", MIXED),
    Program("detr_finetuning", "transformers", "DETR: its matching loss and its post-processing"),
    Program("segformer_finetuning", "transformers", "SegFormer with an ignored label"),
    Program("wav2vec_ctc", "transformers", "Wav2Vec2 with CTC; Whisper's generate"),
    Program("trl_dpo", "trl", "DPOTrainer with a reference model and evaluation"),
    Program("open_clip_main", "open_clip_torch", "its own training program on synthetic data, and a checkpoint"),
    Program("ultralytics_yolo", "ultralytics", "YOLO11: train, val and predict", RANDOM),
    Program("metric_learning", "pytorch-metric-learning", "miners, triplets, ArcFace and NT-Xent"),
    Program("smp_unet", "segmentation-models-pytorch", "U-Net with Dice and focal loss, and metrics"),
    Program("vit_pytorch_classes", "vit-pytorch", "ViT with dropout and SimpleViT", RANDOM),
    Program("ddpm_trainer", "denoising-diffusion-pytorch", "its Trainer, samples and milestones", RANDOM),
    Program("x_transformers_lm", "x-transformers", "a decoder: training and generate with a cache"),
    Program("skorch_classifier", "skorch", "a pipeline, a grid search and a checkpoint"),
    Program("ignite_engines", "pytorch-ignite", "trainer and evaluator with metrics and handlers"),
    Program("gpytorch_regression", "gpytorch", "exact and variational Gaussian processes"),
    Program("botorch_optimization", "botorch", "Bayesian optimization in double precision", RANDOM),
    Program("pyro_svi", "pyro-ppl", "stochastic variational inference and predictions", RANDOM),
    Program("neural_ode", "torchdiffeq", "an adaptive solver and its adjoint"),
    Program("kornia_augmentation", "kornia", "augmentations, losses and a registration", RANDOM),
    Program("captum_attribution", "captum", "eight attributions of a classifier", RANDOM),
    Program("monai_segmentation", "monai", "3D U-Net, sliding windows and Dice"),
    Program("opacus_private", "opacus", "training with differential privacy", RANDOM),
    Program("torchrl_ppo", "torchrl", "PPO: collector, advantages and replay buffer", RANDOM),
    Program("fastai_learner", "fastai", "a vision Learner by one cycle, and tabular data"),
    Program("tabnet_classifier", "pytorch-tabnet", "pretraining, training, explanations and saving", RANDOM),
    Program("lightly_simclr", "lightly", "SimCLR and BYOL with a memory bank, and kNN"),
    Program("torchmetrics_collection", "torchmetrics", "collections of metrics of five kinds"),
)
"""In the order of the table."""
