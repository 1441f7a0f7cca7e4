"""verl 0.9.1: its SFT trainer with the adaptive objective.

torchrun --nproc-per-node 8 examples/verl_loss.py data.train_files=… model.path=…

Not verified: written against the source of verl 0.9.1, never run. For the engine fsdp with
model.use_fused_kernels=False, which gives sum p^2, and without sequence parallelism. verl's hydra
wants omegaconf < 2.4 and its transformers is < 5.11, against what adaptsft asks for.
"""

from pathlib import Path

import hydra
import torch
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group
from verl.workers.utils.losses import sft_loss

from adaptsft import AdaptiveObjective


class AdaptiveSFTTrainer(SFTTrainer):
    def _build_ckpt_handler(self):  # the optimizer is built by now, and nothing is loaded
        super()._build_ckpt_handler()
        optimizer, steps = self.engine.optimizer, self.total_training_steps
        self.objective = AdaptiveObjective("auto", total_steps=steps, optimizer=optimizer)
        self.training_client.set_loss_fn(self.loss)
        train_batch = self.engine.train_batch
        save, load = self.ckpt_handler.save_checkpoint, self.ckpt_handler.load_checkpoint

        def trained(data, loss_function):
            tu.assign_non_tensor(data, calculate_sum_pi_squared=True)
            output = train_batch(data, loss_function)
            norm = torch.tensor(output["metrics"]["grad_norm"])  # not finite: verl has not stepped
            self.objective.step(skipped=1.0 - norm.isfinite().to(self.objective.device).float())
            return output

        def saved(step):
            save(step)
            if self.rank == 0:
                torch.save(self.objective.state_dict(), self.state_file(step))

        def loaded():
            if step := load():
                self.objective.load_state_dict(torch.load(self.state_file(step)))
            return step

        self.engine.train_batch = trained
        self.ckpt_handler.save_checkpoint, self.ckpt_handler.load_checkpoint = saved, loaded

    def state_file(self, step):
        return Path(self.config.trainer.default_local_dir, f"global_step_{step}", "objective.pt")

    def loss(self, model_output, data, dp_group=None):
        if not torch.is_grad_enabled():
            return sft_loss(None, model_output, data, dp_group)
        mask = data["loss_mask"].values().roll(-1).bool()
        logps = model_output["log_probs"].values()
        collision = model_output["sum_pi_squared"].values()
        share = data["batch_num_tokens"] / data["dp_size"]
        loss, _ = self.objective.loss_from_logps(
            logps, mask=mask, collision=collision, num_tokens=share
        )
        return loss, {}


@hydra.main("pkg://verl.trainer.config", "sft_trainer_engine", version_base=None)
def main(config):
    initialize_global_process_group()
    AdaptiveSFTTrainer(config=config).fit()
    destroy_global_process_group()


if __name__ == "__main__":
    main()
