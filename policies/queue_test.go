package policies

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// cleared stands for the queue's read model: what was queued, or leased, at a position.
func (w *world) cleared(ctx context.Context, position int64) ([]events.BuildID, error) {
	recorded, err := w.log.Read(ctx, 0, int(position))
	if err != nil {
		return nil, err
	}
	builds := map[string]commands.Build{}
	var order []events.BuildID
	for _, m := range recorded {
		if e, ok := m.Event.(events.BuildEvent); ok {
			if _, known := builds[m.Stream]; !known {
				id, _ := events.ParseBuild(m.Stream)
				order = append(order, id)
			}
			builds[m.Stream] = builds[m.Stream].Fold(e)
		}
	}
	var queued []events.BuildID
	for _, id := range order {
		if s := builds[id.Stream()].Status; s == "queued" || s == "retrying" || s == "leased" {
			queued = append(queued, id)
		}
	}
	return queued, nil
}

func TestClear(t *testing.T) {
	for _, include := range []bool{false, true} {
		t.Run(fmt.Sprintf("IncludeLeased=%v", include), func(t *testing.T) {
			w := newWorld(t)
			w.queue("built", "queued", "leased", "back", "again", "taken")
			w.succeed("built")
			w.lease("leased")
			w.lease("back")
			w.lease("taken")
			w.do(commands.ClearQueue{IncludeLeased: include})
			w.queue("after") // was not in the queue that was cleared
			// Before the policy has read the event: asked for anew, handed back, both.
			w.queue("again", "taken")
			w.do(commands.ReleaseBuild{Build: id("back"), Attempt: 1, Worker: "w"})
			late := Message{commands.Meta{ID: uuid.New(), Actor: "tester"}, commands.LeaseBuild{Build: id("queued"), Worker: "w", ExpiresAt: noon}}
			if o := w.handle(late); o.Status != eventlog.Refused {
				t.Errorf("leased what the queue was cleared of: %+v", o)
			}
			w.loop = true // before the policy begins
			lost := false // the first answer of the read model is an error
			w.follow(Clear(w.send, func(ctx context.Context, position int64) ([]events.BuildID, error) {
				if !lost {
					lost = true
					return nil, errCrash
				}
				return w.cleared(ctx, position)
			}))
			w.settle("policy:clear")
			want := map[string]string{
				"built": "built", "queued": "cancelled", "leased": "leased", "back": "retrying", "taken": "leased", "again": "queued", "after": "queued",
			}
			if include {
				want["leased"], want["back"], want["taken"] = "cancelled", "cancelled", "queued"
			}
			got := map[string]string{}
			for name := range want {
				got[name] = w.build(name).Status
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			for _, m := range w.messages() {
				if c := m.Command.(commands.CancelBuild); c.KeepLeased == include || m.Meta.Actor != "policy:clear" || m.Meta.Causation == 0 {
					t.Errorf("%+v", m)
				}
			}
		})
	}
}

// Nothing is lost when the bus does not take the commands: they are sent again under the same ids.
func TestClearAgain(t *testing.T) {
	w := newWorld(t)
	w.queue("a", "b")
	w.do(commands.ClearQueue{})
	w.failing(errors.New("the bus is away"))
	tries := 0
	w.follow(Clear(w.send, func(ctx context.Context, position int64) ([]events.BuildID, error) {
		if tries++; tries == 3 {
			w.failing(nil)
		}
		return w.cleared(ctx, position)
	}))
	w.settle("policy:clear")
	sent := w.messages()
	if len(sent) != 6 {
		t.Fatalf("sent %d commands in 3 tries", len(sent))
	}
	for try := range 3 {
		if d := cmp.Diff(sent[:2], sent[2*try:2*try+2]); d != "" {
			t.Errorf("try %d:\n%s", try, d)
		}
	}
}
