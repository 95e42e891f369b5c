package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	submit  = SubmitRun{Run: runA, Requirements: "flask", Constraints: "x<2", Python: "3.11", Platform: "linux_x86_64", Strategy: "pinned", Build: "names", Names: []string{"flask"}}
	nodes   = []events.Node{{Name: "flask", Version: "3.0.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "build", Reason: "asked", Root: true, Sdist: source1}}
	record  = RecordPlan{Run: runA, Attempt: 1, Plan: plan1, Worker: "w1", PythonTag: "cp311", PlatformTag: "linux_x86_64", Nodes: nodes, Warnings: []string{"w"}, DurationMS: 4}
	noPlan  = FailPlan{Run: runA, Attempt: 1, Worker: "w1", Class: events.ClassResolve, Reason: "no flask", Detail: []string{"d"}}
	entries = []events.ManifestEntry{{Name: "flask", Version: "3.0.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Status: "built", Wheel: wheel1.Filename, SHA256: wheel1.SHA256}}
	finish  = FinishRun{Run: runA, State: "built", Counts: map[string]int{"built": 1}, Manifest: entries}

	unplan     = ReleasePlan{Run: runA, Attempt: 1, Worker: "w1", Reason: "gone"}
	lostPlan   = ReleasePlan{Run: runA, Attempt: 1, Worker: "w1", Reason: "gone", Lost: true}
	planLeased = func(n int) events.RunPlanLeased {
		return events.RunPlanLeased{Attempt: n, Worker: "w1", ExpiresAt: noon}
	}
	planGone = func(n int, lost bool) events.RunPlanReleased {
		return events.RunPlanReleased{Attempt: n, Worker: "w1", Reason: "gone", Lost: lost}
	}

	rSubmitted = given(events.RunSubmitted{Requirements: "flask", Strategy: "pinned", Build: "missing"})
	rPlanning  = extended(rSubmitted, planLeased(1))
	rReleased  = extended(rPlanning, planGone(1, false))
	rPlanning2 = extended(rReleased, planLeased(2))
	rPlanned   = extended(rPlanning, events.RunPlanned{Plan: plan1, Worker: "w1", Nodes: nodes})
	rNoPlan    = extended(rPlanning, events.RunPlanFailed{Worker: "w1", Class: events.ClassResolve, Reason: "no flask"})
	rCancelled = extended(rPlanned, events.RunCancelled{Reason: "no"})
	rFinished  = extended(rPlanned, events.RunFinished{State: "built"})
	rLost2     = extended(rPlanning, planGone(1, true), planLeased(2), planGone(2, true), planLeased(3))

	noPlanner = events.RunPlanFailed{
		Worker: "w1", Class: events.ClassLostWorker,
		Reason: "the worker was lost 3 times while it planned this; look at the worker's machine, then submit again",
	}
)

func releasePlan(c ReleasePlan, n int) ReleasePlan { c.Attempt = n; return c }
func recordPlan(n int) RecordPlan                  { c := record; c.Attempt = n; return c }

var runScenarios = []scenario{
	{
		"new", nil, submit,
		then(events.RunSubmitted{
			Requirements: "flask", Constraints: "x<2", Python: "3.11", Platform: "linux_x86_64", Strategy: "pinned", Build: "names", Names: []string{"flask"},
		}), "", "",
	},
	{"twice", rSubmitted, submit, nil, fault.Conflict, "a run of this id already"},
	{"after it ended", rFinished, submit, nil, fault.Conflict, "a run of this id already"},

	{"of nothing", nil, LeasePlan{runA, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what waits", rSubmitted, LeasePlan{runA, "w2", noon}, then(events.RunPlanLeased{Attempt: 1, Worker: "w2", ExpiresAt: noon}), "", ""},
	{"of what waits again", rReleased, LeasePlan{runA, "w2", noon}, then(events.RunPlanLeased{Attempt: 2, Worker: "w2", ExpiresAt: noon}), "", ""},
	{"of what is leased", rPlanning, LeasePlan{runA, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what is planned", rPlanned, LeasePlan{runA, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what was cancelled", extended(rSubmitted, events.RunCancelled{}), LeasePlan{runA, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what failed", rNoPlan, LeasePlan{runA, "w2", noon}, nil, fault.Conflict, "does not wait"},

	{"of nothing", nil, unplan, nil, fault.NotFound, "no such run"},
	{"handed back", rPlanning, unplan, then(planGone(1, false)), "", ""},
	{"handed back twice", rReleased, unplan, nil, "", ""},
	{"of what was never leased", rSubmitted, releasePlan(unplan, 0), nil, fault.Conflict, "drop it"},
	{"expired", rPlanning, lostPlan, then(planGone(1, true)), "", ""},
	{"expired late, while another plans", rPlanning2, lostPlan, nil, fault.Conflict, "the run is planning at attempt 2; drop it"},
	{"expired late, after it was planned", rPlanned, lostPlan, nil, fault.Conflict, "drop it"},
	{"the third loss", rLost2, releasePlan(lostPlan, 3), then(noPlanner), "", ""},
	{"handed back after two losses", rLost2, releasePlan(unplan, 3), then(planGone(3, false)), "", ""},

	{"of nothing", nil, record, nil, fault.NotFound, "no such run"},
	{
		"of what is being planned", rPlanning, record,
		then(events.RunPlanned{Plan: plan1, Worker: "w1", PythonTag: "cp311", PlatformTag: "linux_x86_64", Nodes: nodes, Warnings: []string{"w"}, DurationMS: 4}), "", "",
	},
	{"twice", rPlanned, record, nil, fault.Conflict, "the run is planned at attempt 1; drop it"},
	{"late, while it waits again", rReleased, record, nil, fault.Conflict, "drop it"},
	{"late, while another plans", rPlanning2, record, nil, fault.Conflict, "drop it"},
	{"of the second attempt", rPlanning2, recordPlan(2), then(events.RunPlanned{
		Plan: plan1, Worker: "w1", PythonTag: "cp311", PlatformTag: "linux_x86_64", Nodes: nodes, Warnings: []string{"w"}, DurationMS: 4,
	}), "", ""},
	{"after it was cancelled", extended(rPlanning, events.RunCancelled{}), record, nil, fault.Conflict, "the run is cancelled"},

	{"of nothing", nil, noPlan, nil, fault.NotFound, "no such run"},
	{
		"of what is being planned", rPlanning, noPlan,
		then(events.RunPlanFailed{Worker: "w1", Class: events.ClassResolve, Reason: "no flask", Detail: []string{"d"}}), "", "",
	},
	{"twice", rNoPlan, noPlan, nil, fault.Conflict, "the run is failed"},
	{"late, while another plans", rPlanning2, noPlan, nil, fault.Conflict, "drop it"},
	{"after the plan", rPlanned, noPlan, nil, fault.Conflict, "drop it"},

	{"of nothing", nil, CancelRun{runA, "no"}, nil, fault.NotFound, "no such run"},
	{"of what waits", rSubmitted, CancelRun{runA, "no"}, then(events.RunCancelled{Reason: "no"}), "", ""},
	{"of what is being planned", rPlanning, CancelRun{runA, "no"}, then(events.RunCancelled{Reason: "no"}), "", ""},
	{"of what is planned", rPlanned, CancelRun{runA, "no"}, then(events.RunCancelled{Reason: "no"}), "", ""},
	{"twice", rCancelled, CancelRun{runA, "no"}, nil, fault.Conflict, "it is cancelled"},
	{"twice without a plan", extended(rSubmitted, events.RunCancelled{}), CancelRun{runA, "no"}, nil, fault.Conflict, "it is cancelled"},
	{"of what failed", rNoPlan, CancelRun{runA, "no"}, nil, fault.Conflict, "it is failed"},
	{"of what ended", rFinished, CancelRun{runA, "no"}, nil, fault.Conflict, "it is built"},

	{"of nothing", nil, finish, nil, fault.NotFound, "no such run"},
	{"without a plan", rPlanning, finish, nil, fault.Conflict, "no plan yet"},
	{"of what is planned", rPlanned, finish, then(events.RunFinished{State: "built", Counts: map[string]int{"built": 1}, Manifest: entries}), "", ""},
	{"of what was cancelled", rCancelled, finish, then(events.RunFinished{State: "built", Counts: map[string]int{"built": 1}, Manifest: entries}), "", ""},
	{"twice", rFinished, finish, nil, "", ""},
	{"of what was cancelled without a plan", extended(rSubmitted, events.RunCancelled{}), finish, nil, "", ""},

	{"of nothing", nil, RecordManifest{runA, "w1", entries}, nil, fault.NotFound, "no such run"},
	{"of a run", rFinished, RecordManifest{runA, "w1", entries}, then(events.ManifestRecorded{Worker: "w1", Entries: entries}), "", ""},
}

func TestRun(t *testing.T) { check(t, runScenarios) }

func TestRunState(t *testing.T) {
	for state, history := range map[string][]events.Event{
		"submitted": rReleased, "planning": rPlanning2, "planned": rPlanned, "built": rFinished, "failed": rNoPlan, "cancelled": rCancelled,
	} {
		var r Run
		for _, e := range history {
			r = r.Fold(e.(events.RunEvent))
		}
		if r.State != state {
			t.Errorf("state %q, want %q", r.State, state)
		}
	}
}
