package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
)

var (
	paused  = events.QueuePaused{Reason: "why"}
	cleared = events.QueueCleared{IncludeLeased: true, Reason: "why"}
)

var queueScenarios = []scenario{
	{"new", nil, ClearQueue{IncludeLeased: true, Reason: "why"}, then(cleared), "", ""},
	{"twice", given(cleared), ClearQueue{IncludeLeased: true, Reason: "why"}, then(cleared), "", ""},
	{"while it is paused", given(paused), ClearQueue{}, then(events.QueueCleared{}), "", ""},
	{"new", nil, PauseQueue{Reason: "why"}, then(paused), "", ""},
	{"twice", given(paused), PauseQueue{Reason: "other"}, nil, "", ""},
	{"cleared meanwhile", given(paused, cleared), PauseQueue{}, nil, "", ""},
	{"after it went on", given(paused, events.QueueResumed{}), PauseQueue{Reason: "why"}, then(paused), "", ""},
	{"of what is not paused", nil, ResumeQueue{}, nil, "", ""},
	{"of what is paused", given(paused), ResumeQueue{}, then(events.QueueResumed{}), "", ""},
	{"twice", given(paused, events.QueueResumed{}), ResumeQueue{}, nil, "", ""},
}

func TestQueue(t *testing.T) { check(t, queueScenarios) }
