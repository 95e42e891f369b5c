package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	five       = 5
	aptPython  = []events.Recipe{{Kind: "apt", Items: []string{"python3-dev"}}}
	again      = events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3, Retry: true}
	againOther = events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptPython, Priority: 5, Retry: true}
	moved      = events.BuildPriorityChanged{Priority: 5}
)

var retryScenarios = []scenario{
	{"of nothing", nil, RetryBuild{Build: flask}, nil, fault.NotFound, "no such build"},
	{"of what failed", hFailed, RetryBuild{Build: flask}, then(again), "", ""},
	{"otherwise", hFailed, RetryBuild{Build: flask, Recipes: aptPython, Priority: &five}, then(againOther), "", ""},
	{"of what was cancelled", hCancelled, RetryBuild{Build: flask}, then(again), "", ""},
	{"of what was skipped", hSkipped, RetryBuild{Build: flask}, then(events.BuildQueued{}), "", ""},
	{"twice", extended(hFailed, again), RetryBuild{Build: flask}, nil, fault.Conflict, "is queued: only what failed"},
	{"of what is built", hBuilt, RetryBuild{Build: flask}, nil, fault.Conflict, "is built: only what failed"},
	{"of what is being built", hBuilding, RetryBuild{Build: flask}, nil, fault.Conflict, "is building"},
	{"of what is planned", hPlanned, RetryBuild{Build: flask}, nil, fault.Conflict, "is planned"},
	{"of nothing", nil, ChangePriority{flask, 5}, nil, fault.NotFound, "no such build"},
	{"of what waits", hQueued, ChangePriority{flask, 5}, then(moved), "", ""},
	{"of what was handed back", hReleased, ChangePriority{flask, 5}, then(moved), "", ""},
	{"to what it is", extended(hQueued, moved), ChangePriority{flask, 5}, nil, "", ""},
	{"of what is leased", hLeased, ChangePriority{flask, 5}, nil, fault.Conflict, "a worker has the build"},
	{"of what is being built", hBuilding, ChangePriority{flask, 5}, nil, fault.Conflict, "a worker has the build"},
	{"of what failed", hFailed, ChangePriority{flask, 5}, nil, fault.Conflict, "is failed: only one that waits"},
}

func TestRetry(t *testing.T) { check(t, retryScenarios) }
