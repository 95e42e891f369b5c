// Package wheel reads wheels that somebody else made: it believes nothing, and says what a wheel is only when its filename, its METADATA
// and its WHEEL file agree.
package wheel

import (
	"archive/zip"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of a wheel. What is over them is refused.
const (
	mostDirectory = 8 << 20 // bytes of the archive's directory: some 60,000 files
	mostUnpacked  = 8 << 30 // bytes of all files together
	mostRatio     = 1000    // unpacked to packed, from 100 MiB on
	mostMetadata  = 4 << 20 // bytes of METADATA
	mostWheelFile = 64 << 10
)

// Wheel is what a wheel says of itself.
type Wheel struct {
	Filename
	RequiresPython string
	Metadata       []byte // the METADATA file
}

func invalid(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }

// Read reads the wheel of this filename. Its errors are fault.Invalid and say what is wrong or which two things disagree; an error of r
// itself is returned as it is.
func Read(filename string, r io.ReaderAt, size int64) (*Wheel, error) {
	name, err := ParseFilename(filename)
	if err != nil {
		return nil, err
	}
	a, err := open(r, size)
	if err != nil {
		return nil, err
	}
	info, err := a.distInfo(name)
	if err != nil {
		return nil, err
	}
	metadata, err := a.read(info+"/METADATA", mostMetadata)
	if err != nil {
		return nil, err
	}
	wheelFile, err := a.read(info+"/WHEEL", mostWheelFile)
	if err != nil {
		return nil, err
	}
	w := &Wheel{Filename: name, Metadata: metadata}
	if err := w.agree(headers(metadata), headers(wheelFile)); err != nil {
		return nil, err
	}
	return w, nil
}

// agree compares what METADATA and WHEEL say with the filename.
func (w *Wheel) agree(metadata, wheelFile map[string][]string) error {
	for _, key := range []string{"metadata-version", "name", "version"} {
		if len(metadata[key]) != 1 {
			return invalid("METADATA must have %s exactly once.", key)
		}
	}
	if len(metadata["requires-python"]) > 1 {
		return invalid("METADATA has Requires-Python more than once.")
	}
	if events.NormalizeName(metadata["name"][0]) != w.Project {
		return invalid("The project in the filename and the Name in METADATA disagree.")
	}
	if !SameVersion(metadata["version"][0], w.Version) {
		return invalid("The version in the filename and the Version in METADATA disagree.")
	}
	if major, _, _ := strings.Cut(strings.Join(wheelFile["wheel-version"], " "), "."); major != "1" {
		return invalid("WHEEL must have a Wheel-Version 1.x exactly once.")
	}
	var tags []string
	for _, t := range wheelFile["tag"] {
		single, ok := expand(t)
		if tags = append(tags, single...); !ok || len(tags) > 4*mostTags {
			return invalid("A Tag in WHEEL is not of the form python-abi-platform (PEP 425).")
		}
	}
	slices.Sort(tags)
	if !slices.Equal(slices.Compact(tags), w.Tags) {
		return invalid("The tags in the filename and the Tag lines in WHEEL disagree.")
	}
	if builds := wheelFile["build"]; len(builds) > 1 || len(builds) == 1 && builds[0] != w.Build {
		return invalid("The build tag in the filename and the Build in WHEEL disagree.")
	}
	if python := metadata["requires-python"]; len(python) == 1 {
		w.RequiresPython = python[0]
		if len(w.RequiresPython) > 200 || !utf8.ValidString(w.RequiresPython) || strings.ContainsRune(w.RequiresPython, 0) {
			return invalid("Requires-Python in METADATA has more than 200 characters or is not text.")
		}
	}
	return nil
}

type archive struct {
	files  map[string]*zip.File
	source *source
}

// open reads the archive's directory and checks it.
func open(r io.ReaderAt, size int64) (*archive, error) {
	// Whoever wrote the archive says how many entries there are; only reading less bounds the memory that they take.
	src := &source{r: r, left: mostDirectory}
	z, err := zip.NewReader(src, size)
	if src.err != nil {
		return nil, src.err
	}
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, invalid("The file is not a zip archive that can be read.")
	}
	src.left = 1 << 62 // from here on only two files are read
	files := make(map[string]*zip.File, len(z.File))
	var packed, unpacked uint64
	for _, f := range z.File {
		if !fs.ValidPath(strings.TrimSuffix(f.Name, "/")) || strings.ContainsAny(f.Name, "\\\x00") || !utf8.ValidString(f.Name) {
			return nil, invalid("The archive has a file whose name leads out of it or is not text.")
		}
		if files[f.Name] != nil {
			return nil, invalid("The archive has a file twice.")
		}
		files[f.Name] = f
		packed, unpacked = packed+min(f.CompressedSize64, mostUnpacked), unpacked+min(f.UncompressedSize64, mostUnpacked)
	}
	switch {
	case packed > uint64(size):
		return nil, invalid("The archive's files overlap.")
	case unpacked >= mostUnpacked, unpacked > 100<<20 && unpacked/mostRatio > uint64(size):
		return nil, invalid("The archive unpacks to too much.")
	}
	return &archive{files, src}, nil
}

// distInfo finds the one folder that describes the wheel.
func (a *archive) distInfo(name Filename) (string, error) {
	found := ""
	for path := range a.files {
		top, _, ok := strings.Cut(path, "/")
		if !ok || !strings.HasSuffix(strings.ToLower(top), ".dist-info") || top == found {
			continue
		}
		if found != "" {
			return "", invalid("The archive has more than one .dist-info folder.")
		}
		found = top
	}
	project, version, ok := strings.Cut(strings.TrimSuffix(found, ".dist-info"), "-")
	switch {
	case found == "":
		return "", invalid("The archive has no .dist-info folder.")
	case !ok || events.NormalizeName(project) != name.Project || !SameVersion(strings.ReplaceAll(version, "_", "-"), name.Version):
		return "", invalid("The filename and the name of the .dist-info folder disagree.")
	}
	return found, nil
}

// read returns a file of at most limit bytes.
func (a *archive) read(name string, limit int64) ([]byte, error) {
	short := name[strings.LastIndex(name, "/")+1:]
	f := a.files[name]
	if f == nil {
		return nil, invalid("The archive has no %s.", short)
	}
	r, err := f.Open()
	if a.source.err != nil {
		return nil, a.source.err
	}
	if err != nil {
		return nil, invalid("%s cannot be unpacked.", short)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if a.source.err != nil {
		return nil, a.source.err
	}
	if err != nil {
		return nil, invalid("%s cannot be unpacked.", short)
	}
	if int64(len(data)) > limit {
		return nil, invalid("%s is larger than %d bytes.", short, limit)
	}
	return data, nil
}

// headers reads the header lines of a METADATA or WHEEL file. Keys are in lower case. As installers do, it stops at the first line that
// is none.
func headers(data []byte) map[string][]string {
	all := map[string][]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for lines.Scan() {
		line := lines.Text()
		if line != "" && (line[0] == ' ' || line[0] == '\t') {
			continue // goes on with a value that nobody here asks for
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			break
		}
		key = strings.ToLower(key)
		all[key] = append(all[key], strings.TrimSpace(value))
	}
	return all
}

// source reads at most so many bytes, and keeps errors of the reader apart from what is wrong with the archive.
type source struct {
	r    io.ReaderAt
	left int64
	err  error
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if s.left -= int64(len(p)); s.left < 0 {
		return 0, fmt.Errorf("more than %d bytes of directory", mostDirectory)
	}
	n, err := s.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
