package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A row type is a struct whose fields have the tags `db:"column" sql:"type"`, key columns `sql:"type primary key"`. Embedded structs
// are part of the row. Strings, ints and bools are not null; a zero time or UUID is null; every other type is kept as JSON, an empty
// slice as []: json, which costs the database less than jsonb, unless queries look into it.

type column struct {
	name, sql string
	key       bool
	index     []int
}

var columnsCache sync.Map // reflect.Type to []column

func columnsOf(t reflect.Type) []column {
	if cols, ok := columnsCache.Load(t); ok {
		return cols.([]column)
	}
	var cols []column
	for _, f := range reflect.VisibleFields(t) {
		name, ok := f.Tag.Lookup("db")
		if !ok {
			continue
		}
		sql, key := strings.CutSuffix(f.Tag.Get("sql"), " primary key")
		cols = append(cols, column{name, sql, key, f.Index})
	}
	columnsCache.Store(t, cols)
	return cols
}

// Columns lists the columns of a row type, for a select.
func Columns[R any]() string { return names(columnsOf(reflect.TypeFor[R]())) }

func names(cols []column) string {
	s := make([]string, len(cols))
	for i, c := range cols {
		s[i] = c.name
	}
	return strings.Join(s, ", ")
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Query reads rows of a read model: "select <columns of R> " and then tail, which starts with "from". The result is never nil.
func Query[R any](ctx context.Context, q Querier, tail string, args ...any) ([]R, error) {
	// CacheDescribe: a plan for each call, since one that was made while the table was empty would stay.
	rows, err := q.Query(ctx, "select "+Columns[R]()+" "+tail, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read %T: %w", *new(R), err)
	}
	cols := columnsOf(reflect.TypeFor[R]())
	targets := make([]any, len(cols))
	all, err := pgx.AppendRows([]R{}, rows, func(r pgx.CollectableRow) (R, error) {
		var row R
		v := reflect.ValueOf(&row).Elem()
		for i, c := range cols {
			targets[i] = target(v.FieldByIndex(c.index))
		}
		return row, r.Scan(targets...)
	})
	if err != nil {
		return nil, fmt.Errorf("read %T: %w", *new(R), err)
	}
	return all, nil
}

type (
	nullTime time.Time
	nullUUID uuid.UUID
	jsonText struct{ into any }
)

func (t *nullTime) ScanTimestamptz(v pgtype.Timestamptz) error {
	*t = nullTime{}
	if v.Valid {
		*t = nullTime(v.Time.UTC())
	}
	return nil
}

func (u *nullUUID) ScanUUID(v pgtype.UUID) error {
	*u = nullUUID(v.Bytes)
	return nil
}

func (j jsonText) Scan(v any) error {
	switch v := v.(type) {
	case []byte:
		return json.Unmarshal(v, j.into)
	case string:
		return json.Unmarshal([]byte(v), j.into)
	}
	return fmt.Errorf("%T where JSON was expected", v)
}

// target is what a column is scanned into.
func target(field reflect.Value) any {
	switch p := field.Addr().Interface().(type) {
	case *time.Time:
		return (*nullTime)(p)
	case *uuid.UUID:
		return (*nullUUID)(p)
	default:
		if plain(field.Type()) {
			return p
		}
		return jsonText{p}
	}
}

func plain(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Int, reflect.Int64, reflect.Bool:
		return true
	}
	return false
}

// array is one argument of unnest: n values of type t.
func array(t reflect.Type, n int, at func(int) reflect.Value) (any, error) {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return fill(n, func(i int) pgtype.Timestamptz { return timeOrNull(at(i).Interface().(time.Time)) }), nil
	case t == reflect.TypeFor[uuid.UUID]():
		return fill(n, func(i int) pgtype.UUID { return uuidOrNull(at(i).Interface().(uuid.UUID)) }), nil
	case t.Kind() == reflect.String:
		return fill(n, func(i int) string { return at(i).String() }), nil
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return fill(n, func(i int) int64 { return at(i).Int() }), nil
	case t.Kind() == reflect.Bool:
		return fill(n, func(i int) bool { return at(i).Bool() }), nil
	}
	texts := make(pgtype.FlatArray[string], n)
	for i := range n {
		text, err := jsonOf(at(i))
		if err != nil {
			return nil, err
		}
		texts[i] = text
	}
	return texts, nil
}

func timeOrNull(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

func uuidOrNull(u uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: u, Valid: u != uuid.UUID{}} }

func jsonOf(v reflect.Value) (string, error) {
	if v.Kind() == reflect.Slice && v.Len() == 0 {
		return "[]", nil
	}
	var data []byte
	var err error
	if m, ok := v.Interface().(json.Marshaler); ok && v.Kind() != reflect.Pointer {
		data, err = m.MarshalJSON() // what it makes need not be checked once more
	} else {
		data, err = json.Marshal(v.Interface())
	}
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", v.Type(), err)
	}
	return string(data), nil
}

// copying is rows as COPY takes them.
type copying struct {
	columns []column
	rows    reflect.Value
	next    int
	values  []any
	err     error
}

func (c *copying) Next() bool { c.next++; return c.next <= c.rows.Len() }
func (c *copying) Err() error { return c.err }

func (c *copying) Values() ([]any, error) {
	row := c.rows.Index(c.next - 1)
	for i, col := range c.columns {
		switch v := row.FieldByIndex(col.index); x := v.Addr().Interface().(type) {
		case *time.Time:
			c.values[i] = timeOrNull(*x)
		case *uuid.UUID:
			c.values[i] = uuidOrNull(*x)
		default:
			if plain(v.Type()) {
				c.values[i] = v.Interface()
			} else if c.values[i], c.err = jsonOf(v); c.err != nil {
				return nil, c.err
			}
		}
	}
	return c.values, nil
}

func fill[V any](n int, at func(int) V) pgtype.FlatArray[V] {
	a := make(pgtype.FlatArray[V], n)
	for i := range a {
		a[i] = at(i)
	}
	return a
}
