"""Users suspend, resume and delete jobs that a queue holds."""

from __future__ import annotations

from tests.kueue.conftest import Queue


def test_suspend_takes_a_waiting_job_out_of_its_queue_and_resume_puts_it_back(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("busy")
    queue.apply("support")
    runs.succeed("prepare")
    waiting = runs.wait_phase("Queued", reason="WaitingForQuota").stages[-1]
    runs.patch(suspend=True)
    runs.wait_gone(waiting.job_name)
    assert runs.wait_phase("Suspended").stages[-1].state == "Stopped"
    runs.wait(lambda: len(queue.workloads()) == 1, "the Workload to be gone")
    runs.patch(suspend=False)
    again = runs.wait_phase("Queued", reason="WaitingForQuota").stages[-1]
    assert (again.name, again.attempt) == ("baseline", 2)


def test_suspend_of_a_running_job_frees_its_quota(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("support")
    queue.apply("next")
    runs.succeed("prepare", name="next")
    runs.wait_phase("Queued", "next", reason="WaitingForQuota")
    running = runs.stage()
    assert running is not None
    runs.patch(suspend=True)
    runs.wait_gone(running.job_name)
    runs.wait_phase("Suspended")
    runs.begin("baseline", name="next")
    runs.patch(suspend=False)
    assert runs.wait_phase("Queued", reason="WaitingForQuota").stages[-1].attempt == 2


def test_a_deleted_job_leaves_nothing_in_its_queue(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("busy")
    queue.apply("support")
    runs.succeed("prepare")
    waiting = runs.wait_phase("Queued", reason="WaitingForQuota").stages[-1]
    runs.delete()
    runs.wait(lambda: waiting.job_name not in {job.metadata.name for job in runs.jobs()}, "the Job to be gone")
    runs.wait(lambda: len(queue.workloads()) == 1, "the Workload to be gone")
    assert runs.status("busy").phase == "Baseline", "the others are not touched"
