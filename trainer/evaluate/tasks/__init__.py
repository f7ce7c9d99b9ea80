"""The task pack: what lm-evaluation-harness's own tasks ask and score, on benchmark files of a local folder."""
