package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
)

var projectionScenarios = []scenario{
	{"new", nil, RebuildProjection{"builds"}, then(events.RebuildRequested{}), "", ""},
	{"again", given(events.RebuildRequested{}), RebuildProjection{"builds"}, then(events.RebuildRequested{}), "", ""},
	{"retry", nil, MendProjection{"builds", 7, false}, then(events.DeadLetterRetried{Position: 7}), "", ""},
	{"retry again", given(events.DeadLetterRetried{Position: 7}), MendProjection{"builds", 7, false}, then(events.DeadLetterRetried{Position: 7}), "", ""},
	{"skip", nil, MendProjection{"builds", 7, true}, then(events.DeadLetterSkipped{Position: 7}), "", ""},
}

func TestProjection(t *testing.T) { check(t, projectionScenarios) }
