package readapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"time"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

// page is a list's body with its Link header.
type page struct {
	body any
	link string
}

const (
	defaultLimit = 50
	mostLimit    = 500
)

func invalid(parameter, format string, args ...any) error {
	var k fault.Checks
	k.Check(false, "query:"+parameter, format, args...)
	return k.Err()
}

func limitOf(p *api.Limit) (int, error) {
	switch {
	case p == nil:
		return defaultLimit, nil
	case *p < 1 || *p > mostLimit:
		return 0, invalid("limit", "must be from 1 to %d", mostLimit)
	}
	return *p, nil
}

// where collects conditions. In a condition %s stands for the parameter.
type where struct {
	conditions []string
	args       []any
}

func (w *where) and(condition string, arg any) {
	w.args = append(w.args, arg)
	w.conditions = append(w.conditions, fmt.Sprintf(condition, fmt.Sprintf("$%d", len(w.args))))
}

// name adds the condition of a project's name, if one is given in any spelling.
func (w *where) name(name *api.Name) {
	if name != nil {
		w.and("name = %s", events.NormalizeName(*name))
	}
}

// version adds the condition of a version, if one is given in any spelling (PEP 440).
func (w *where) version(v *api.Version) {
	if v == nil {
		return
	}
	w.and("version = %s", normalVersion(*v))
}

// normalVersion is v's normal form; what is no version stays, and is found nowhere.
func normalVersion(v string) string {
	if parsed, err := version.Parse(v); err == nil {
		return parsed.String()
	}
	return v
}

func (w *where) String() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " where " + strings.Join(w.conditions, " and ")
}

// keys are the columns that a list is sorted by: all ascending or all descending, unique together, all of type bigint.
type keys struct {
	columns    string // such as "position"
	n          int
	descending bool
}

// list reads one page of R from table, and the cursor of the next page, nil on the last.
func list[R any](ctx context.Context, s *Server, table string, w where, k keys, of func(R) []int64, limit *api.Limit, cursor *api.Cursor) ([]R, *string, error) {
	n, err := limitOf(limit)
	if err != nil {
		return nil, nil, err
	}
	order, direction := ">", ""
	if k.descending {
		order, direction = "<", " desc"
	}
	if cursor != nil {
		at, err := decodeCursor(*cursor, k.n)
		if err != nil {
			return nil, nil, err
		}
		var params []string
		for _, v := range at {
			w.args = append(w.args, v)
			params = append(params, fmt.Sprintf("$%d::bigint", len(w.args)))
		}
		w.conditions = append(w.conditions, fmt.Sprintf("(%s) %s (%s)", k.columns, order, strings.Join(params, ", ")))
	}
	by := strings.ReplaceAll(k.columns, ",", direction+",") + direction
	rows, err := projections.Query[R](ctx, s.DB, fmt.Sprintf("from %s%s order by %s limit %d", table, w.String(), by, n+1), w.args...)
	if err != nil {
		return nil, nil, err
	}
	if len(rows) <= n {
		return rows, nil, nil
	}
	rows = rows[:n]
	next := encodeCursor(of(rows[n-1]))
	return rows, &next, nil
}

func encodeCursor(at []int64) string {
	data, _ := json.Marshal(at) // numbers
	return base64.RawURLEncoding.EncodeToString(data)
}

func decodeCursor(cursor string, n int) ([]int64, error) {
	data, err := base64.RawURLEncoding.DecodeString(cursor)
	var at []int64
	if err != nil || json.Unmarshal(data, &at) != nil || len(at) != n {
		return nil, invalid("cursor", "is not the next of a page of this list: start without it")
	}
	return at, nil
}

// link is the Link header of a page: the same query with the next cursor, relative to the request (RFC 8288, 3.1).
func link(params any, next *string) string {
	if next == nil {
		return ""
	}
	q := url.Values{}
	v := reflect.ValueOf(params)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("form"), ",")
		if f := v.Field(i); name != "" && !f.IsNil() {
			add(q, name, f.Elem())
		}
	}
	q.Set("cursor", *next)
	return fmt.Sprintf(`<?%s>; rel="next"`, q.Encode())
}

func add(q url.Values, name string, v reflect.Value) {
	if t, ok := v.Interface().(time.Time); ok {
		q.Add(name, t.Format(time.RFC3339Nano))
	} else if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			add(q, name, v.Index(i))
		}
	} else {
		q.Add(name, fmt.Sprint(v.Interface()))
	}
}

// convert maps rows to items; never nil.
func convert[R, I any](rows []R, f func(R) I) []I {
	items := make([]I, len(rows))
	for i, r := range rows {
		items[i] = f(r)
	}
	return items
}

// optional is a pointer to v, nil for its zero value.
func optional[V comparable](v V) *V {
	if v == *new(V) {
		return nil
	}
	return &v
}

// one is the only row, or what says that there is none.
func one[R any](rows []R, err error, missing string) (R, error) {
	if err != nil {
		return *new(R), err
	}
	if len(rows) == 0 {
		return *new(R), fault.New(fault.NotFound, "%s", missing)
	}
	return rows[0], nil
}
