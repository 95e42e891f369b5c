package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	triggerAsked  = events.TriggerRequested{}
	triggerFailed = events.TriggerFailed{Attempt: 1, Status: 500, Reason: "it answered 500", DurationMS: 3, RetryAt: noon}
	recordFailed  = RecordTrigger{Trigger: runA, Attempt: 1, Status: 500, Reason: "it answered 500", DurationMS: 3, RetryAt: noon}
	recordOK      = RecordTrigger{Trigger: runA, Attempt: 2, Status: 204, DurationMS: 3}
	triggerLast   = events.TriggerFailed{Attempt: 2, Reason: "refused"}
	triggerDone   = events.TriggerSucceeded{Attempt: 2, Status: 204, DurationMS: 3}
)

var triggerScenarios = []scenario{
	{"new", nil, RequestTrigger{Trigger: runA}, then(triggerAsked), "", ""},
	{"here", nil, RequestTrigger{runA, true, 3}, then(events.TriggerRequested{Local: true}, events.TriggerSucceeded{Attempt: 1, Woken: 3}), "", ""},
	{"twice", given(triggerAsked), RequestTrigger{Trigger: runA}, nil, fault.Conflict, "of this id already"},
	{"of nothing", nil, recordFailed, nil, fault.NotFound, "no such wake-up"},
	{"failed", given(triggerAsked), recordFailed, then(triggerFailed), "", ""},
	{"the same attempt again", given(triggerAsked, triggerFailed), recordFailed, nil, fault.Conflict, "attempt 1 is not the next"},
	{"the next", given(triggerAsked, triggerFailed), recordOK, then(triggerDone), "", ""},
	{"the last", given(triggerAsked, triggerFailed), RecordTrigger{Trigger: runA, Attempt: 2, Reason: "refused"}, then(triggerLast), "", ""},
	{"after the last", given(triggerAsked, triggerFailed, triggerLast), RecordTrigger{Trigger: runA, Attempt: 3}, nil, fault.Conflict, "is failed after 2"},
	{"after it succeeded", given(triggerAsked, triggerFailed, triggerDone), RecordTrigger{Trigger: runA, Attempt: 3}, nil, fault.Conflict, "is succeeded"},
}

func TestTrigger(t *testing.T) { check(t, triggerScenarios) }
