package events

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(name string) string { return filepath.Join("testdata", name+".json") }

// What is stored stays readable for ever: each event has a golden file of two lines, one value with every field set and one with none.
func TestGolden(t *testing.T) {
	known := map[string]bool{}
	for _, zero := range All() {
		known[zero.Name()+".json"] = true
		t.Run(zero.Name(), func(t *testing.T) {
			if *update {
				filled := reflect.New(reflect.TypeOf(zero)).Elem()
				fill(filled, "event")
				text := string(encode(t, filled.Interface().(Event))) + "\n" + string(encode(t, zero)) + "\n"
				if err := os.WriteFile(golden(zero.Name()), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			data, err := os.ReadFile(golden(zero.Name()))
			if err != nil {
				t.Fatalf("%v; a new event gets its golden file from go test ./events -update", err)
			}
			lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
			if len(lines) != 2 {
				t.Fatalf("%d lines, want a full and a minimal value", len(lines))
			}
			for i, line := range lines {
				e, err := Decode(zero.Name(), line)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(string(line), string(encode(t, e))); d != "" {
					t.Errorf("the stored form has changed; a new shape is a .v2 with an upcaster (-golden +now):\n%s", d)
				}
				if unset := zeroFields(reflect.ValueOf(e), ""); i == 0 && len(unset) > 0 {
					t.Errorf("%v are not set by the full value: a field was added; a new shape is a .v2 with an upcaster", unset)
				}
			}
		})
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".json") && !known[f.Name()] {
			t.Errorf("%s: no event of this name is registered any more, and logs hold it", f.Name())
		}
	}
}

func encode(t testing.TB, e Event) []byte {
	t.Helper()
	data, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fill sets every field to a value that differs from the zero value and, for strings, needs escaping.
func fill(v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 2, 3, 4, 5, 6, 789000, time.UTC)))
		return
	case uuid.UUID:
		v.Set(reflect.ValueOf(uuid.NewSHA1(uuid.NameSpaceOID, []byte(name))))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(name + ": <ä> & \"b\"\n\x1b[0m\u2028")
	case reflect.Int, reflect.Int64:
		v.SetInt(1<<40 + int64(len(name)))
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), fmt.Sprint(name, i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, key := range []string{"b", "a"} {
			value := reflect.New(v.Type().Elem()).Elem()
			fill(value, name+key)
			v.SetMapIndex(reflect.ValueOf(key), value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fill(v.Field(i), f.Name)
			}
		}
	default:
		panic("fill: " + v.Type().String())
	}
}

// zeroFields lists the paths that hold nothing.
func zeroFields(v reflect.Value, path string) (unset []string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			break
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				unset = append(unset, zeroFields(v.Field(i), path+"."+f.Name)...)
			}
		}
		return unset
	case reflect.Slice:
		for i := range v.Len() {
			unset = append(unset, zeroFields(v.Index(i), fmt.Sprintf("%s[%d]", path, i))...)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return zeroFields(v.Elem(), path)
		}
	}
	if v.IsZero() {
		unset = append(unset, path)
	}
	return unset
}

// The test of the test: a field that is added, with omitempty or without, a field that is renamed or gone does not pass unseen.
func TestGoldenSeesChanges(t *testing.T) {
	type added struct {
		A string `json:"a"`
		B struct {
			C *int `json:"c,omitempty"`
		} `json:"b"`
	}
	if got := zeroFields(reflect.ValueOf(added{A: "x"}), ""); len(got) != 1 || got[0] != ".B.C" {
		t.Errorf("unset fields: %v", got)
	}
}

type thingV1 struct {
	Minutes int `json:"minutes"`
}

type thingV2 struct {
	Seconds int `json:"seconds"`
}

type thingV3 struct {
	Duration time.Duration `json:"duration"`
}

func (thingV1) Name() string { return "test.thing.v1" }
func (thingV2) Name() string { return "test.thing.v2" }
func (thingV3) Name() string { return "test.thing.v3" }

// sandbox lets a test register events that are gone after it.
func sandbox(t *testing.T) {
	d, z, u := maps.Clone(decoders), maps.Clone(zeroes), maps.Clone(upcasters)
	t.Cleanup(func() { decoders, zeroes, upcasters = d, z, u })
}

func TestUpcast(t *testing.T) {
	sandbox(t)
	register[thingV1]()
	register[thingV2]()
	register[thingV3]()
	upcast(func(e thingV1) thingV2 { return thingV2{e.Minutes * 60} })
	upcast(func(e thingV2) thingV3 { return thingV3{time.Duration(e.Seconds) * time.Second} })
	for name, data := range map[string]string{
		"test.thing.v1": `{"minutes":2}`, "test.thing.v2": `{"seconds":120}`, "test.thing.v3": `{"duration":120000000000}`,
	} {
		if e, err := Decode(name, []byte(data)); err != nil || e != (thingV3{2 * time.Minute}) {
			t.Errorf("%s: %#v, %v", name, e, err)
		}
	}
	if _, err := Decode("test.thing.v1", []byte(`{"minutes":"2"}`)); err == nil {
		t.Error("an old shape with data that does not fit was decoded")
	}
}

func TestRegister(t *testing.T) {
	sandbox(t)
	register[thingV1]()
	defer func() {
		if recover() == nil {
			t.Error("one name was registered twice")
		}
	}()
	register[thingV1]()
}

func TestUnknown(t *testing.T) {
	data := []byte(`{"b": 1,  "a":2}`)
	e, err := Decode("build.teleported.v9", data)
	u, ok := e.(Unknown)
	if err != nil || !ok || u.Name() != "build.teleported.v9" || string(u.Data) != `{"b": 1,  "a":2}` {
		t.Fatalf("%#v, %v", e, err)
	}
	data[0] = 'x'
	if u.Data[0] != '{' {
		t.Error("Unknown shares the memory that it was decoded from")
	}
	if _, err := Encode(u); err == nil {
		t.Error("an Unknown was encoded: it could be appended")
	}
	if _, err := Encode(thingV1{}); err == nil {
		t.Error("an unregistered event was encoded")
	}
}

// impostor has the name of another event.
type impostor struct{}

func (impostor) Name() string { return BuildQueued{}.Name() }

func TestEncodeRefusesImpostors(t *testing.T) {
	if _, err := Encode(impostor{}); err == nil {
		t.Error("a type was encoded under the name of another")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, data := range []string{``, `{`, `[]`, `"x"`, `null`, `{"priority":"high"}`, `{"priority":1} {}`, `{"run":"x"}`} {
		if e, err := Decode(BuildQueued{}.Name(), []byte(data)); err == nil {
			t.Errorf("%s was decoded: %#v", data, e)
		}
	}
}

// Whatever decodes can be encoded, and that form is stable.
func FuzzDecode(f *testing.F) {
	for _, e := range All() {
		data, err := os.ReadFile(golden(e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			f.Add(bytes.TrimSpace(line))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, zero := range All() {
			e, err := Decode(zero.Name(), data)
			if err != nil {
				continue
			}
			first := encode(t, e)
			again, err := Decode(e.Name(), first)
			if err != nil {
				t.Fatalf("%s: %v: %s", e.Name(), err, first)
			}
			if second := encode(t, again); !bytes.Equal(first, second) {
				t.Fatalf("%s: %s became %s", e.Name(), first, second)
			}
		}
	})
}
