"""From a model that continues text to one that answers: SFT, LoRA, rewards, DPO, PPO, GRPO.

The objectives are pure functions of log-probabilities. Read in this order: errors, logprobs, lora,
reward_model, dpo, kl, advantages, ppo, grpo; then the data: settings, rewards, preferences,
mistakes, chat_data, pair_data, questions, orders; what measures: accuracy, held_out, sums; the
tasks: sft, reference, dpo_task, reward_task, rollouts, experience, policy_task, grpo_task,
ppo_task; and what runs them: methods, runs.
"""
