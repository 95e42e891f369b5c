package writeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// CreateHint is POST /hints.
func (s *Server) CreateHint(ctx context.Context, r api.CreateHintRequestObject) (api.CreateHintResponseObject, error) {
	h, err := hint(*r.Body)
	if err != nil {
		return nil, err
	}
	return s.saveHint(ctx, commands.SaveHint{Hint: h, New: true})
}

// PutHint is PUT /hints/{id}.
func (s *Server) PutHint(ctx context.Context, r api.PutHintRequestObject) (api.PutHintResponseObject, error) {
	h, err := hint(*r.Body, r.ID)
	if err != nil {
		return nil, err
	}
	return s.saveHint(ctx, commands.SaveHint{Hint: h, Expected: version(r.Params.IfMatch)})
}

// hint reads one hint. An id that the path has may be left out, and must not be another.
func hint(body json.RawMessage, id ...string) (events.Hint, error) {
	var k fault.Checks
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return events.Hint{}, fault.New(fault.Invalid, "The body is not an object.")
	}
	var named string
	if text, ok := fields["id"]; ok {
		if err := json.Unmarshal(text, &named); err != nil {
			return events.Hint{}, fault.New(fault.Invalid, "The id is not text.")
		}
	}
	switch {
	case len(id) == 0:
		k.Check(named != "", "/id", "is missing")
	case named == "":
		fields["id"] = json.RawMessage(strconv.Quote(id[0]))
	default:
		k.Check(named == id[0], "/id", "is not that of the path")
	}
	if err := k.Err(); err != nil {
		return events.Hint{}, err
	}
	list, err := json.Marshal([]any{fields})
	if err != nil {
		return events.Hint{}, fmt.Errorf("encode the hint: %w", err)
	}
	entries, err := hints.Parse(list)
	if err != nil {
		return events.Hint{}, err
	}
	return entries[0].Hint, entries[0].Err
}

// version is the part of an ETag that names a version; 0: none is asked for.
func version(match *api.IfMatch) int64 {
	if match == nil {
		return 0
	}
	text, _, _ := strings.Cut(strings.Trim(*match, `"`), ".")
	v, _ := strconv.ParseInt(text, 10, 64) // its form is the contract's
	return v
}

func (s *Server) saveHint(ctx context.Context, c commands.SaveHint) (api.Answer, error) {
	body := api.HintAnswer{ID: c.ID, Duplicates: []api.HintID{}}
	a, err := send(ctx, s, meta(ctx, ""), c, func(h commands.Hint, o eventlog.Outcome) api.Answer {
		body.Version = h.Version
		status := http.StatusOK
		if c.New || h.Version == 1 && o.First > 0 {
			status = http.StatusCreated
		}
		return api.Answer{Status: status, Header: http.Header{"Location": {"/hints/" + url.PathEscape(c.ID)}}}
	})
	if err != nil || body.Version == 0 { // refused, or not decided yet
		return a, err
	}
	twins, err := s.Twins(ctx, []string{c.Twin()})
	if err != nil {
		return a, err
	}
	body.Duplicates = others(twins[c.Twin()], c.ID)
	a.Body = body
	return a, nil
}

func others(ids []string, id string) []string {
	return append([]string{}, slices.DeleteFunc(slices.Clone(ids), func(other string) bool { return other == id })...)
}

// DeleteHint is DELETE /hints/{id}.
func (s *Server) DeleteHint(ctx context.Context, r api.DeleteHintRequestObject) (api.DeleteHintResponseObject, error) {
	c := commands.DeleteHint{ID: r.ID, Expected: version(r.Params.IfMatch)}
	return send(ctx, s, meta(ctx, ""), c, func(commands.Hint, eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusNoContent}
	})
}

// importPatience is how long an import waits for the outcomes of all its entries.
const importPatience = 30 * time.Second

// ImportHints is POST /hints/import. Each entry is a command of its own; all are stored before any is waited for.
func (s *Server) ImportHints(ctx context.Context, r api.ImportHintsRequestObject) (api.ImportHintsResponseObject, error) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	entries, err := hints.Parse(data)
	if err != nil {
		return nil, err
	}
	base := meta(ctx, "")
	items := make([]api.HintImportItem, len(entries))
	var sent []Sending
	var at []int // of sent in items
	for i, e := range entries {
		items[i] = api.HintImportItem{Index: e.Index, ID: e.Hint.ID, Result: api.HintResultPending}
		c := commands.SaveHint{Hint: e.Hint}
		if e.Err == nil {
			e.Err = c.Validate()
		}
		if e.Err != nil {
			refuse(&items[i], e.Err)
			continue
		}
		m := base
		m.ID = uuid.NewSHA1(base.ID, fmt.Appendf(nil, "%d", i))
		if m.Digest, err = digest(ctx, c); err != nil {
			return nil, err
		}
		items[i].Command = m.ID
		sent, at = append(sent, Sending{m, c}), append(at, i)
	}
	last, err := s.settle(ctx, sent, func(i int, o eventlog.Outcome) {
		item := &items[at[i]]
		switch {
		case o.Digest != sent[i].Meta.Digest:
			refuse(item, fault.New(fault.Invalid, "the Idempotency-Key was used for another import: use a new one"))
		case o.Status != eventlog.Applied:
			refuse(item, o.Problem)
		case o.First > 0:
			item.Result = api.HintResultTaken
		default:
			item.Result = api.HintResultKept
		}
	})
	if err != nil {
		return nil, err
	}
	return s.imported(ctx, entries, items, last)
}

// settle stores commands and tells decided of each outcome that comes in time. last is the position that all of them are at or before.
func (s *Server) settle(ctx context.Context, sent []Sending, decided func(i int, o eventlog.Outcome)) (last int64, err error) {
	if len(sent) == 0 {
		return 0, nil
	}
	waits := make([]func(context.Context) (eventlog.Outcome, error), len(sent))
	for i, c := range sent {
		wait, forget := s.Await(c.Meta.ID)
		defer forget()
		waits[i] = wait
	}
	if err := stored("the import", s.SendAll(ctx, sent)); err != nil {
		return 0, err
	}
	if api.RequestFrom(ctx).Async {
		return 0, nil
	}
	patient, cancel := context.WithTimeout(ctx, importPatience)
	defer cancel()
	for i, wait := range waits {
		o, err := wait(patient)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return last, nil
		case err != nil: // they are stored, and will be decided
			s.Logger.Warn("the outcomes of an import cannot be waited for", "error", err)
			return last, nil
		}
		decided(i, o)
		last = max(last, o.Last)
	}
	return last, nil
}

func refuse(item *api.HintImportItem, why error) {
	item.Result = api.HintResultRefused
	f, ok := errors.AsType[*fault.Error](why)
	if !ok {
		f = fault.New(fault.Internal, "it could not be handled")
	}
	for _, field := range f.Fields {
		item.Errors = append(item.Errors, api.FieldError{Pointer: field.Pointer, Detail: field.Detail})
	}
	if len(f.Fields) == 0 {
		item.Errors = append(item.Errors, api.FieldError{Detail: f.Message})
	}
}

// imported answers an import. What matches the same as an entry is found once the entries are there.
func (s *Server) imported(ctx context.Context, entries []hints.Entry, items []api.HintImportItem, last int64) (api.Answer, error) {
	var twins []string
	for i, e := range entries {
		if items[i].Result != api.HintResultRefused {
			twins = append(twins, e.Hint.Twin())
		}
	}
	same, err := s.Twins(ctx, twins)
	if err != nil {
		return api.Answer{}, err
	}
	body := api.HintImportAnswer{Items: items}
	for i := range items {
		item := &items[i]
		switch item.Result {
		case api.HintResultTaken:
			body.Taken++
		case api.HintResultKept:
			body.Kept++
		case api.HintResultPending:
			body.Pending++
		case api.HintResultRefused:
			body.Refused++
			continue
		}
		item.Duplicates = others(same[entries[i].Hint.Twin()], item.ID)
	}
	a := api.Answer{Status: http.StatusOK, Header: http.Header{}, Body: body}
	if body.Pending > 0 {
		a.Status = http.StatusAccepted
	}
	if last > 0 {
		a.Header.Set("Refinery-Position", strconv.FormatInt(last, 10))
	}
	return a, nil
}
