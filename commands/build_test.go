package commands

import (
	"testing"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func leased(attempt int) events.BuildLeased {
	return events.BuildLeased{Attempt: attempt, Worker: "w1", ExpiresAt: noon}
}

func released(attempt int, lost bool) events.BuildReleased {
	return events.BuildReleased{Attempt: attempt, Worker: "w1", Reason: "gone", Lost: lost}
}

func succeeded(attempt int, wheel events.File, sdist string) events.BuildSucceeded {
	return events.BuildSucceeded{
		Attempt: attempt, Run: runA, Worker: "w1", Wheel: wheel, SdistSHA256: sdist, StartedAt: noon, DurationMS: 5, LogLines: 7,
	}
}

func failed(attempt int) events.BuildFailed {
	return events.BuildFailed{
		Attempt: attempt, Run: runA, Worker: "w1", Class: events.ClassCompiler, Reason: "no gcc", Evidence: []string{"gcc: not found"},
		StartedAt: noon, DurationMS: 5, LogLines: 7,
	}
}

// Histories of a build, each with the one before it in it where that makes sense.
var (
	fullQueue = events.BuildQueued{Run: runA, Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3}

	hPlanned   = given(events.BuildPlanned{Run: runA})
	hQueued    = given(fullQueue)
	hLeased    = extended(hQueued, leased(1))
	hBuilding  = extended(hLeased, events.BuildStarted{Attempt: 1})
	hReleased  = extended(hBuilding, released(1, false))
	hLeased2   = extended(hReleased, leased(2))
	hBuilt     = extended(hBuilding, succeeded(1, wheel1, hash1))
	hFailed    = extended(hBuilding, failed(1))
	hCancelled = extended(hBuilding, events.BuildCancelled{Reason: "no", Attempt: 1})
	hSkipped   = given(events.BuildPlanned{Run: runA}, events.BuildSkipped{Run: runA, Reason: "needs x"})
	hReused    = given(events.BuildReused{Run: runA, Wheel: wheel1})
	hLost2     = extended(hLeased, released(1, true), leased(2), released(2, true), leased(3))
)

// The commands that the scenarios vary.
var (
	enqueue = EnqueueBuild{Build: flask, Run: runB, Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3}
	succeed = SucceedBuild{
		Build: flask, Attempt: 1, Worker: "w1", Wheel: wheel1, SdistSHA256: hash1, StartedAt: noon, DurationMS: 5, LogLines: 7,
	}
	fail = FailBuild{
		Build: flask, Attempt: 1, Worker: "w1", Class: events.ClassCompiler, Reason: "no gcc", Evidence: []string{"gcc: not found"},
		StartedAt: noon, DurationMS: 5, LogLines: 7,
	}
	release = ReleaseBuild{Build: flask, Attempt: 1, Worker: "w1", Reason: "gone"}
	lost    = ReleaseBuild{Build: flask, Attempt: 1, Worker: "w1", Reason: "gone", Lost: true}
	cancel  = CancelBuild{Build: flask, Run: runA, Reason: "no"}
)

func succeed2() SucceedBuild { c := succeed; c.Attempt = 2; return c }
func fail2() FailBuild       { c := fail; c.Attempt = 2; return c }
func attempt(c ReleaseBuild, n int) ReleaseBuild {
	c.Attempt = n
	return c
}

var giveUp = events.BuildFailed{
	Attempt: 3, Run: runA, Worker: "w1", Class: events.ClassLostWorker,
	Reason: "the worker was lost 3 times while it built this; look at the worker's machine, then retry",
}

var buildScenarios = []scenario{
	{"of nothing", nil, PlanBuild{flask, runA, source1}, then(events.BuildPlanned{Run: runA}), "", ""},
	{"again for another run", hPlanned, PlanBuild{flask, runB, source1}, then(events.BuildPlanned{Run: runB}), "", ""},
	{"of what waits", hQueued, PlanBuild{flask, runB, source1}, nil, "", ""},
	{"of what waits again", hReleased, PlanBuild{flask, runB, source1}, nil, "", ""},
	{"of what is leased", hLeased, PlanBuild{flask, runB, source1}, nil, "", ""},
	{"of what is being built", hBuilding, PlanBuild{flask, runB, source1}, nil, "", ""},
	{"of what is built", hBuilt, PlanBuild{flask, runB, source1}, then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", ""},
	{"of what is built from any source", hBuilt, PlanBuild{flask, runB, nil}, then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", ""},
	{"of what is built from another source", hBuilt, PlanBuild{flask, runB, source2}, then(events.BuildPlanned{Run: runB}), "", ""},
	{"of what failed", hFailed, PlanBuild{flask, runB, source1}, then(events.BuildPlanned{Run: runB}), "", ""},
	{"of what was skipped", hSkipped, PlanBuild{flask, runB, source1}, then(events.BuildPlanned{Run: runB}), "", ""},
	{"of what is reused from elsewhere", hReused, PlanBuild{flask, runB, source1}, then(events.BuildPlanned{Run: runB}), "", ""},

	{"of nothing", nil, EnqueueBuild{Build: flask, Priority: -1}, then(events.BuildQueued{Priority: -1}), "", ""},
	{
		"of what is planned", hPlanned, enqueue,
		then(events.BuildQueued{Run: runB, Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3}), "", "",
	},
	{"twice", hQueued, enqueue, nil, "", ""},
	{"twice for a rebuild", hQueued, EnqueueBuild{Build: flask, Rebuild: true}, nil, "", ""},
	{"of what waits again", hReleased, enqueue, nil, "", ""},
	{"of what is leased", hLeased, enqueue, nil, "", ""},
	{"of what is being built for a rebuild", hBuilding, EnqueueBuild{Build: flask, Rebuild: true}, nil, "", ""},
	{"of what is built", hBuilt, enqueue, then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", ""},
	{"of what is built from any source", hBuilt, EnqueueBuild{Build: flask}, then(events.BuildReused{Wheel: wheel1, Own: true}), "", ""},
	{
		"of what was built before it was reused from elsewhere", extended(hBuilt, events.BuildReused{Run: runA, Wheel: wheel2}), enqueue,
		then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", "",
	},
	{
		"of what was built before a rebuild failed", extended(hBuilt, events.BuildQueued{Sdist: source1, Retry: true}, leased(2), failed(2)), enqueue,
		then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", "",
	},
	{
		"of what is built from another source, whose pins are not kept", hBuilt,
		EnqueueBuild{Build: flask, Sdist: source2},
		then(events.BuildQueued{Sdist: source2, Recipes: aptRuby, Retry: true}), "", "",
	},
	{
		"a rebuild keeps the source", hBuilt,
		EnqueueBuild{Build: flask, Rebuild: true, Priority: 9},
		then(events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 9, Retry: true}), "", "",
	},
	{
		"of what failed keeps the source, takes new pins and recipes", hFailed,
		EnqueueBuild{Build: flask, Constraints: []string{"x==1"}, Recipes: []events.Recipe{{Kind: "pip", Items: []string{"y"}}}},
		then(events.BuildQueued{
			Sdist: source1, Constraints: []string{"x==1"}, Recipes: []events.Recipe{{Kind: "pip", Items: []string{"y"}}}, Retry: true,
		}), "", "",
	},
	{
		"of what was cancelled", hCancelled,
		EnqueueBuild{Build: flask},
		then(events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptRuby, Retry: true}), "", "",
	},
	{"of what was cancelled unleased", extended(hPlanned, events.BuildCancelled{Reason: "no"}), EnqueueBuild{Build: flask}, then(events.BuildQueued{}), "", ""},
	{"of what was skipped", hSkipped, EnqueueBuild{Build: flask}, then(events.BuildQueued{}), "", ""},
	{"of what is reused from elsewhere", hReused, EnqueueBuild{Build: flask}, then(events.BuildQueued{}), "", ""},

	{"of nothing", nil, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what is planned", hPlanned, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what waits", hQueued, LeaseBuild{flask, "w2", noon}, then(events.BuildLeased{Attempt: 1, Worker: "w2", ExpiresAt: noon}), "", ""},
	{"of what waits again", hReleased, LeaseBuild{flask, "w2", noon}, then(events.BuildLeased{Attempt: 2, Worker: "w2", ExpiresAt: noon}), "", ""},
	{"of what is leased", hLeased, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what the same worker has", hLeased, LeaseBuild{flask, "w1", noon}, nil, fault.Conflict, "does not wait"},
	{"of what is being built", hBuilding, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what is built", hBuilt, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what failed", hFailed, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{"of what was cancelled", hCancelled, LeaseBuild{flask, "w2", noon}, nil, fault.Conflict, "does not wait"},
	{
		"after a cancelled attempt counts on", extended(hCancelled, events.BuildQueued{Sdist: source1, Retry: true}),
		LeaseBuild{flask, "w2", noon},
		then(events.BuildLeased{Attempt: 2, Worker: "w2", ExpiresAt: noon}), "", "",
	},

	{"of nothing", nil, StartBuild{flask, 1}, nil, fault.NotFound, "no such build"},
	{"of what is leased", hLeased, StartBuild{flask, 1}, then(events.BuildStarted{Attempt: 1}), "", ""},
	{"twice", hBuilding, StartBuild{flask, 1}, nil, "", ""},
	{"of what waits", hQueued, StartBuild{flask, 0}, nil, fault.Conflict, "drop it"},
	{"late", hLeased2, StartBuild{flask, 1}, nil, fault.Conflict, "attempt 1 does not hold the lease: the build is leased at attempt 2; drop it"},
	{"early", hLeased, StartBuild{flask, 2}, nil, fault.Conflict, "drop it"},
	{"of what was cancelled", hCancelled, StartBuild{flask, 1}, nil, fault.Conflict, "drop it"},

	{"of nothing", nil, succeed, nil, fault.NotFound, "no such build"},
	{"of what is being built", hBuilding, succeed, then(succeeded(1, wheel1, hash1)), "", ""},
	{"without a start", hLeased, succeed, then(succeeded(1, wheel1, hash1)), "", ""},
	{"twice", hBuilt, succeed, nil, "", ""},
	{
		"twice with another wheel", hBuilt, func() SucceedBuild { c := succeed; c.Wheel = wheel2; return c }(), nil, fault.Conflict, "drop it",
	},
	{"late, while it waits again", hReleased, succeed, nil, fault.Conflict, "the build is retrying at attempt 1; drop it"},
	{"late, while another builds it", hLeased2, succeed, nil, fault.Conflict, "the build is leased at attempt 2; drop it"},
	{"late, after another built it", extended(hLeased2, succeeded(2, wheel2, hash1)), succeed, nil, fault.Conflict, "drop it"},
	{"late, after another built the same bytes", extended(hLeased2, succeeded(2, wheel1, hash1)), succeed, nil, fault.Conflict, "drop it"},
	{"late, after it failed", hFailed, succeed, nil, fault.Conflict, "drop it"},
	{"late, after it was cancelled", hCancelled, succeed, nil, fault.Conflict, "the build is cancelled"},
	{"late, after it was cancelled and queued again", extended(hCancelled, events.BuildQueued{Retry: true}), succeed, nil, fault.Conflict, "drop it"},
	{"of the second attempt", hLeased2, succeed2(), then(succeeded(2, wheel1, hash1)), "", ""},
	{
		"a rebuild of the same bytes", extended(hBuilt, events.BuildQueued{Run: runA, Sdist: source1, Retry: true}, leased(2)), succeed2(),
		then(succeeded(2, wheel1, hash1)), "", "",
	},

	{"of nothing", nil, fail, nil, fault.NotFound, "no such build"},
	{"of what is being built", hBuilding, fail, then(failed(1)), "", ""},
	{"twice", hFailed, fail, nil, "", ""},
	{"late, while it waits again", hReleased, fail, nil, fault.Conflict, "drop it"},
	{"late, while another builds it", hLeased2, fail, nil, fault.Conflict, "drop it"},
	{"late, after another failed", extended(hLeased2, failed(2)), fail, nil, fault.Conflict, "drop it"},
	{"late, after it succeeded", hBuilt, fail, nil, fault.Conflict, "the build is built"},
	{"late, after it was cancelled", hCancelled, fail, nil, fault.Conflict, "drop it"},
	{"of the second attempt", hLeased2, fail2(), then(failed(2)), "", ""},

	{"of nothing", nil, release, nil, fault.NotFound, "no such build"},
	{"handed back", hBuilding, release, then(released(1, false)), "", ""},
	{"handed back twice", hReleased, release, nil, "", ""},
	{"expired", hLeased, lost, then(released(1, true)), "", ""},
	{"expired after it was handed back", hReleased, lost, nil, "", ""},
	{"handed back late, after another handed it back", extended(hLeased2, released(2, false)), release, nil, fault.Conflict, "drop it"},
	{"expired late, while another builds it", hLeased2, lost, nil, fault.Conflict, "drop it"},
	{"expired late, after it succeeded", hBuilt, lost, nil, fault.Conflict, "drop it"},
	{"the third loss", hLost2, attempt(lost, 3), then(giveUp), "", ""},
	{"the third loss, twice", extended(hLost2, giveUp), attempt(lost, 3), nil, fault.Conflict, "the build is failed"},
	{"handed back after two losses", hLost2, attempt(release, 3), then(released(3, false)), "", ""},
	{
		"losses count only since it was asked for", extended(hLost2, giveUp, events.BuildQueued{Run: runA, Retry: true}, leased(4)), attempt(lost, 4),
		then(released(4, true)), "", "",
	},

	{"of nothing", nil, cancel, nil, fault.NotFound, "no such build"},
	{"of what is planned", hPlanned, cancel, then(events.BuildCancelled{Run: runA, Reason: "no"}), "", ""},
	{"of what waits", hQueued, cancel, then(events.BuildCancelled{Run: runA, Reason: "no"}), "", ""},
	{"of what waits again", hReleased, CancelBuild{Build: flask, KeepLeased: true}, then(events.BuildCancelled{}), "", ""},
	{"of what is leased", hLeased, cancel, then(events.BuildCancelled{Run: runA, Reason: "no", Attempt: 1}), "", ""},
	{"of what is being built", hBuilding, cancel, then(events.BuildCancelled{Run: runA, Reason: "no", Attempt: 1}), "", ""},
	{"of what a worker has and may keep", hBuilding, CancelBuild{Build: flask, KeepLeased: true}, nil, "", ""},
	{"twice", hCancelled, cancel, nil, fault.Conflict, "it is cancelled"},
	{"of what is built", hBuilt, cancel, nil, fault.Conflict, "it is built"},
	{"of what failed and may be tried again", hFailed, cancel, then(events.BuildCancelled{Run: runA, Reason: "no"}), "", ""},
	{"of what failed for good", hGivenUp, cancel, nil, fault.Conflict, "it is failed"},
	{"of what was skipped", hSkipped, cancel, nil, fault.Conflict, "it is skipped"},
	{"of what is reused", hReused, cancel, nil, fault.Conflict, "it is reused"},

	{"of nothing", nil, SkipBuild{flask, runA, "needs x"}, then(events.BuildSkipped{Run: runA, Reason: "needs x"}), "", ""},
	{"of what is planned", hPlanned, SkipBuild{flask, runA, "needs x"}, then(events.BuildSkipped{Run: runA, Reason: "needs x"}), "", ""},
	{"twice", hSkipped, SkipBuild{flask, runA, "needs x"}, nil, "", ""},
	{"of what waits", hQueued, SkipBuild{flask, runB, "needs x"}, nil, "", ""},
	{"of what is leased", hLeased, SkipBuild{flask, runB, "needs x"}, nil, "", ""},
	{"of what is built", hBuilt, SkipBuild{flask, runB, "needs x"}, nil, "", ""},
	{"of what failed", hFailed, SkipBuild{flask, runB, "needs x"}, nil, "", ""},

	{"of nothing", nil, ReuseBuild{flask, runA, wheel1, false}, then(events.BuildReused{Run: runA, Wheel: wheel1}), "", ""},
	{"of what is planned", hPlanned, ReuseBuild{flask, runA, wheel1, true}, then(events.BuildReused{Run: runA, Wheel: wheel1, Own: true}), "", ""},
	{"of what is built", hBuilt, ReuseBuild{flask, runB, wheel1, true}, then(events.BuildReused{Run: runB, Wheel: wheel1, Own: true}), "", ""},
	{"of what failed", hFailed, ReuseBuild{flask, runB, wheel1, false}, then(events.BuildReused{Run: runB, Wheel: wheel1}), "", ""},
	{"of what waits", hQueued, ReuseBuild{flask, runB, wheel1, false}, nil, "", ""},
	{"of what is leased", hLeased, ReuseBuild{flask, runB, wheel1, false}, nil, "", ""},
}

func TestBuild(t *testing.T) { check(t, buildScenarios) }

// A result that answers a command shows the state after it.
func TestBuildState(t *testing.T) {
	for status, history := range map[string][]events.Event{
		"planned": hPlanned, "queued": hQueued, "leased": hLeased, "building": hBuilding, "retrying": hReleased, "built": hBuilt,
		"failed": hGivenUp, "cancelled": hCancelled, "skipped": hSkipped, "reused": hReused,
	} {
		var b Build
		for _, e := range history {
			b = b.Fold(e.(events.BuildEvent))
		}
		if b.Status != status {
			t.Errorf("status %q, want %q", b.Status, status)
		}
	}
	var b Build
	for _, e := range extended(hLeased2, events.BuildReused{Run: uuid.New(), Wheel: wheel1}) {
		b = b.Fold(e.(events.BuildEvent))
	}
	if b.Attempt != 2 || b.Priority != 3 {
		t.Errorf("attempt %d, priority %d; want 2, 3", b.Attempt, b.Priority)
	}
}
