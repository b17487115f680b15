"""A Kubeflow cluster as its user sees it: uploads, runs, schedules."""
