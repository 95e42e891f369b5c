package readapi

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	version "github.com/aquasecurity/go-pep440-version"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

// page is a list's body with the cursor of the next page.
type page struct {
	body any
	next *string
}

const defaultLimit = 50 // the contract's; that it is from 1 to 500 is checked before

// where collects conditions. In a condition %s stands for the parameter.
type where struct {
	conditions []string
	args       []any
}

func (w *where) and(condition string, arg any) {
	w.args = append(w.args, arg)
	w.conditions = append(w.conditions, fmt.Sprintf(condition, "$"+strconv.Itoa(len(w.args))))
}

func (w *where) clone() where { return where{slices.Clone(w.conditions), slices.Clone(w.args)} }

// equal adds a condition unless v is nil.
func equal[V any](w *where, column string, v *V) {
	if v != nil {
		w.and(column+" = %s", *v)
	}
}

// oneOf adds the condition that a column has one of several values, unless none is given. A single one is looked up in the list's order.
func oneOf[V ~string](w *where, column string, values *[]V) {
	switch {
	case values == nil || len(*values) == 0:
	case len(*values) == 1:
		w.and(column+" = %s", string((*values)[0]))
	default:
		w.and(column+" = any(%s::text[])", convert(*values, func(v V) string { return string(v) }))
	}
}

// project adds the condition of a project in any spelling (PEP 503).
func (w *where) project(column string, name *api.Name) {
	if name != nil {
		w.and(column+" = %s", events.NormalizeName(*name))
	}
}

// version adds the condition of a version in any spelling (PEP 440).
func (w *where) version(v *api.Version) {
	if v != nil {
		w.and("version_key = %s", projections.VersionKey(*v))
	}
}

// stream adds the condition of one stream, or with a slash at the end of all that begin so.
func (w *where) stream(s string) {
	if !strings.HasSuffix(s, "/") {
		w.and("stream = %s", s)
		return
	}
	w.and(`stream collate "C" >= %s`, s)
	w.and(`stream collate "C" < %s`, s[:len(s)-1]+"0") // which follows the slash
}

func (w *where) String() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " where " + strings.Join(w.conditions, " and ")
}

const mostRelease = 6 // segments that are tried

// versions lists the normal forms that are equal to v (PEP 440: 1.0 is 1.0.0), v's own first. What is no version is found nowhere.
func versions(v string) []string {
	parsed, err := version.Parse(v)
	if err != nil {
		return []string{v}
	}
	own := parsed.String()
	epoch, release, rest := projections.SplitVersion(own)
	all := []string{own}
	for n := strings.Count(release, "."); n < mostRelease; n++ {
		if s := epoch + release + rest; s != own {
			all = append(all, s)
		}
		release += ".0"
	}
	return all
}

// list is where the rows of a list are, and their order: unique integers, all ascending or all descending.
type list[R any] struct {
	name  string // short; in cursors
	from  string
	by    []string
	desc  bool
	keyOf func(R) []int64
}

// read reads one page, and the cursor of the next one, nil on the last.
func (l list[R]) read(ctx context.Context, q projections.Querier, w where, limit *api.Limit, cursor *api.Cursor) ([]R, *string, error) {
	n := defaultLimit
	if limit != nil {
		n = *limit
	}
	after, direction := ">", ""
	if l.desc {
		after, direction = "<", " desc"
	}
	if cursor != nil {
		at, err := l.decode(*cursor)
		if err != nil {
			return nil, nil, err
		}
		var params []string
		for _, v := range at {
			w.args = append(w.args, v)
			params = append(params, fmt.Sprintf("$%d::bigint", len(w.args)))
		}
		w.conditions = append(w.conditions, fmt.Sprintf("(%s) %s (%s)", strings.Join(l.by, ", "), after, strings.Join(params, ", ")))
	}
	rows, err := projections.Query[R](ctx, q,
		fmt.Sprintf("from %s%s order by %s limit %d", l.from, w.String(), strings.Join(l.by, direction+", ")+direction, n+1), w.args...)
	if err != nil || len(rows) <= n {
		return rows, nil, err
	}
	rows = rows[:n]
	next := l.encode(l.keyOf(rows[n-1]))
	return rows, &next, nil
}

func (l list[R]) encode(at []int64) string {
	s := l.name
	for _, v := range at {
		s += "." + strconv.FormatInt(v, 10)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(s))
}

func (l list[R]) decode(cursor string) ([]int64, error) {
	data, _ := base64.RawURLEncoding.DecodeString(cursor) // what does not decode is not what comes out below
	_, keys, _ := strings.Cut(string(data), ".")
	var at []int64
	for key := range strings.SplitSeq(keys, ".") {
		v, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			break
		}
		at = append(at, v)
	}
	if len(at) != len(l.by) || l.encode(at) != cursor { // which covers the name of the list
		return nil, invalid("cursor", "is not the `next` of a page of this list: start without it")
	}
	return at, nil
}

// query is the query of parameters as they were sent, but for min_position, which has been waited for.
func query(params any) url.Values {
	q := url.Values{}
	v := reflect.ValueOf(params)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("form"), ",")
		f := v.Field(i)
		switch {
		case name == "" || name == "min_position":
		case f.Kind() != reflect.Pointer: // a required one
			add(q, name, f)
		case !f.IsNil():
			add(q, name, f.Elem())
		}
	}
	return q
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

func nextQuery(params any, next string) url.Values {
	q := query(params)
	q.Set("cursor", next)
	return q
}

// pipeline reads several things in one round trip.
type pipeline struct {
	batch pgx.Batch
	reads []func(context.Context, projections.Querier) error
}

// ask adds a query, as projections.Query makes it, whose rows go to into.
func ask[R any](p *pipeline, into *[]R, tail string, args ...any) {
	p.batch.Queue("select "+projections.Columns[R]()+" "+tail, args...)
	p.reads = append(p.reads, func(ctx context.Context, q projections.Querier) (err error) {
		*into, err = projections.Query[R](ctx, q, tail)
		return err
	})
}

func (p *pipeline) run(ctx context.Context, pool *pgxpool.Pool) error {
	results := pool.SendBatch(ctx, &p.batch)
	for _, read := range p.reads {
		if err := read(ctx, answered{results}); err != nil {
			_ = results.Close() // says the same again
			return err
		}
	}
	if err := results.Close(); err != nil {
		return fmt.Errorf("end the batch: %w", err)
	}
	return nil
}

// prepared runs queries as the pool is made for: with a plan that is kept.
type prepared struct{ pool *pgxpool.Pool }

func (p prepared) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if len(args) > 0 {
		if _, ok := args[0].(pgx.QueryExecMode); ok {
			args = args[1:]
		}
	}
	return p.pool.Query(ctx, sql, args...)
}

// answered gives the results of a batch in the order of its queries.
type answered struct{ results pgx.BatchResults }

func (a answered) Query(context.Context, string, ...any) (pgx.Rows, error) { return a.results.Query() }

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

// first is the first row, or what says that there is none.
func first[R any](rows []R, missing string) (R, error) {
	if len(rows) == 0 {
		return *new(R), fault.New(fault.NotFound, "%s", missing)
	}
	return rows[0], nil
}
