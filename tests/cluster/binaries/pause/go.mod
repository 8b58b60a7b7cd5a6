module finetune-operator/tests/cluster/binaries/pause

go 1.26.0
