"""Conversations of the policy with a `gymnasium.Env`: environments in worker processes, their episodes in a
rollout engine, tools, and what becomes of it as samples."""
