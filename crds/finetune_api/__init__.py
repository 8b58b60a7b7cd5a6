"""The contract: kinds, conditions, exit codes and stage reports that operator, runner and command line share."""
