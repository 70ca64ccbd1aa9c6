"""Rounds: people label what the newest policies write, the reward model learns from all labels, the policy
is trained again, and a blind comparison decides whether it is served."""
