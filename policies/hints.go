package policies

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
)

// HintsOptions is what the wiring hands in. All of it is needed.
type HintsOptions struct {
	Send Send
	// Known reads the hints as they are at position, or later.
	Known func(ctx context.Context, position int64) ([]events.Hint, error)
	// Log opens the log of an attempt, or its end where it is long, as it is at position. first is the number of its first line.
	Log  func(ctx context.Context, stream string, position int64) (log io.Reader, first int, err error)
	Most int           // attempts of a build that may fail
	Wait time.Duration // before the second one
}

// Hints judges failed attempts: it finds the hints that the log matches and sends the verdict, for each failure one. Whether the build is
// tried again is decided in its stream.
func Hints(o HintsOptions) eventlog.Follower {
	p := &hintsPolicy{HintsOptions: o}
	return eventlog.Follower{Name: "policy:hints", Apply: p.apply}
}

type hintsPolicy struct {
	HintsOptions
	checkpoint *eventlog.Checkpoint // that the matcher belongs to: another process may have followed since the one before
	matcher    *hints.Matcher       // nil: it must be made of what is known now
	recipes    map[string][]events.Recipe
}

func (p *hintsPolicy) apply(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
	if c != p.checkpoint {
		p.checkpoint, p.matcher = c, nil
	}
	var out []Message
	for _, m := range batch {
		switch e := m.Event.(type) {
		case events.HintSaved, events.HintDeleted:
			p.matcher = nil // made again for the next failure: ten thousand changes cost no more than one
		case events.BuildFailed:
			verdict, err := p.judge(ctx, m, e)
			if err != nil {
				return fmt.Errorf("judge %s: %w", m.Stream, err)
			}
			out = append(out, reaction("policy:hints", m, verdict))
		}
	}
	if len(out) > 0 {
		if err := p.Send(ctx, out); err != nil {
			return err
		}
	}
	return c.Save(ctx, batch[len(batch)-1].Position, nil)
}

// mostText is how much of a matching line a verdict quotes, in bytes.
const mostText = 500

func (p *hintsPolicy) judge(ctx context.Context, m events.Recorded, e events.BuildFailed) (commands.HintBuild, error) {
	id, ok := events.ParseBuild(m.Stream)
	if !ok {
		return commands.HintBuild{}, fmt.Errorf("the event at %d is not of a build's stream", m.Position)
	}
	c := commands.HintBuild{Build: id, Attempt: e.Attempt, Most: p.Most, FailedAt: m.Time, WaitMS: p.Wait.Milliseconds()}
	if p.matcher == nil {
		if err := p.compile(ctx, m.Position); err != nil {
			return c, err
		}
	}
	log, first, err := p.Log(ctx, id.Log(e.Attempt), m.Position)
	if err != nil {
		return c, err
	}
	build := hints.Build{Name: id.Name, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag, Backend: e.Backend}
	found := map[string]bool{}
	for i, text := range []io.Reader{log, strings.NewReader(strings.Join(e.Evidence, "\n"))} {
		matches, err := p.matcher.Match(build, text)
		if err != nil {
			return c, err
		}
		for _, match := range matches {
			if found[match.Hint] || len(c.Hints) == commands.MostHints {
				continue
			}
			found[match.Hint] = true
			line := match.Line + first - 1
			if i > 0 {
				line = 0 // the log does not have it
			}
			c.Hints = append(c.Hints, events.HintMatch{
				Hint: match.Hint, Line: line, Text: clean(match.Text), Recipes: p.recipes[match.Hint],
			})
		}
	}
	return c, nil
}

// clean makes of a line what can be stored.
func clean(line string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(line[:min(len(line), mostText)], ""), "\x00", "")
}

func (p *hintsPolicy) compile(ctx context.Context, position int64) error {
	known, err := p.Known(ctx, position)
	if err != nil {
		return err
	}
	matcher, err := hints.Compile(known)
	if err != nil {
		return err
	}
	p.matcher, p.recipes = matcher, make(map[string][]events.Recipe, len(known))
	for _, h := range known {
		p.recipes[h.ID] = h.Recipes
	}
	return nil
}

// Catalogue makes the commands that bring the program's own hints. Their ids say what they bring: bringing it twice is bringing it once.
func Catalogue(list []events.Hint) ([]Message, error) {
	messages := make([]Message, len(list))
	for i, h := range list {
		content, err := json.Marshal(h)
		if err != nil {
			return nil, fmt.Errorf("hint %s: %w", h.ID, err)
		}
		messages[i] = Message{
			commands.Meta{ID: uuid.NewSHA1(namespace, append([]byte("catalogue "), content...)), Actor: "catalogue"},
			commands.SaveHint{Hint: h, Shipped: true},
		}
	}
	return messages, nil
}
