package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	bulkBuilds    = []events.BuildID{flask, flask312}
	bulkRetry     = RequestBulk{runA, BulkRetry, &five, aptRuby, "why", bulkBuilds}
	bulkRequested = events.BulkRequested{Action: BulkRetry, Priority: &five, Recipes: aptRuby, Reason: "why", Builds: bulkBuilds}
	bulkHalf      = events.BulkProgressed{Applied: 1}
)

var bulkScenarios = []scenario{
	{"new", nil, bulkRetry, then(bulkRequested), "", ""},
	{"of nothing", nil, RequestBulk{Bulk: runA, Action: BulkCancel}, then(events.BulkRequested{Action: BulkCancel}), "", ""},
	{"twice", given(bulkRequested), bulkRetry, nil, fault.Conflict, "of this id already"},
	{"of nothing", nil, ProgressBulk{runA, 1, 0}, nil, fault.NotFound, "no such bulk action"},
	{"one", given(bulkRequested), ProgressBulk{runA, 1, 0}, then(bulkHalf), "", ""},
	{"the other", given(bulkRequested, bulkHalf), ProgressBulk{runA, 0, 1}, then(events.BulkProgressed{Refused: 1}), "", ""},
	{"more than there are", given(bulkRequested, bulkHalf), ProgressBulk{runA, 1, 1}, nil, fault.Conflict, "only 2 builds"},
}

func TestBulk(t *testing.T) { check(t, bulkScenarios) }

// What does not go together is refused where it stands.
func TestBulkValidate(t *testing.T) {
	for name, c := range map[string]RequestBulk{
		"/action":   {Bulk: runA, Action: "delete"},
		"/priority": {Bulk: runA, Action: BulkPriority},
		"/recipes":  {Bulk: runA, Action: BulkPriority, Priority: &five, Recipes: aptRuby},
		"/builds":   {Bulk: runA, Action: BulkCancel, Builds: make([]events.BuildID, MostBulk+1)},
	} {
		err := c.Validate()
		if f, ok := err.(*fault.Error); !ok || f.Fields[0].Pointer != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}
