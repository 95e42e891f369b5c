package wheel

import (
	"regexp"
	"slices"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Filename is what a wheel's filename says.
type Filename struct {
	Project string   // normalised (PEP 503)
	Version string   // normalised (PEP 440)
	Build   string   // the build tag, most often empty
	Tags    []string // expanded (PEP 425), sorted, such as py3-none-any
}

// mostTags bounds what a compressed tag set may expand to.
const mostTags = 200

var (
	projectForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._]*[A-Za-z0-9])?$`)
	buildForm   = regexp.MustCompile(`^[0-9][A-Za-z0-9_.]*$`)
	tagForm     = regexp.MustCompile(`^[a-z0-9_]+$`)
)

// ParseFilename reads a wheel's filename as the binary distribution format (PEP 427 and what followed it) has it:
// {project}-{version}[-{build}]-{python}-{abi}-{platform}.whl. Its errors are fault.Invalid.
func ParseFilename(name string) (Filename, error) {
	invalid := func(why string) (Filename, error) {
		return Filename{}, fault.New(fault.Invalid, "The filename is not a wheel's: %s.", why)
	}
	stem, ok := strings.CutSuffix(name, ".whl")
	if !ok || len(name) > 255 {
		return invalid("it must end with .whl and have at most 255 characters")
	}
	parts := strings.Split(stem, "-")
	f := Filename{}
	switch len(parts) {
	case 5:
	case 6:
		f.Build = parts[2]
		if !buildForm.MatchString(f.Build) {
			return invalid("the build tag must begin with a digit")
		}
		parts = slices.Delete(parts, 2, 3)
	default:
		return invalid("it must have five parts, or six with a build tag, joined by '-'")
	}
	if !projectForm.MatchString(parts[0]) || strings.Contains(parts[0], "__") {
		return invalid("the project must be letters and digits joined by single '_' or '.'")
	}
	f.Project = events.NormalizeName(parts[0])
	var err error
	if f.Version, err = NormalizeVersion(strings.ReplaceAll(parts[1], "_", "-")); err != nil {
		return invalid("the version is not one (PEP 440)")
	}
	if f.Tags, ok = expand(strings.Join(parts[2:], "-")); !ok {
		return invalid("the tags are not a set of python-abi-platform (PEP 425) of at most 200")
	}
	return f, nil
}

// expand makes the single tags of a compressed tag set, sorted.
func expand(set string) ([]string, bool) {
	parts := strings.Split(strings.ToLower(set), "-")
	if len(parts) != 3 {
		return nil, false
	}
	tags := []string{""}
	for _, part := range parts {
		var longer []string
		for choice := range strings.SplitSeq(part, ".") {
			if !tagForm.MatchString(choice) || len(tags)*(len(longer)/len(tags)+1) > mostTags {
				return nil, false
			}
			for _, t := range tags {
				longer = append(longer, t+"-"+choice)
			}
		}
		tags = longer
	}
	for i := range tags {
		tags[i] = tags[i][1:]
	}
	slices.Sort(tags)
	return slices.Compact(tags), true
}

// NormalizeVersion is the normal form of a version (PEP 440). Its error is fault.Invalid.
func NormalizeVersion(s string) (string, error) {
	if len(s) > 100 {
		return "", fault.New(fault.Invalid, "The version has more than 100 characters.")
	}
	// The library leaves the separators and the leading zeros of local versions as they are.
	public, local, ok := strings.Cut(s, "+")
	if ok {
		parts := strings.FieldsFunc(local, func(r rune) bool { return r == '-' || r == '_' || r == '.' })
		if len(parts) != strings.Count(local, "-")+strings.Count(local, "_")+strings.Count(local, ".")+1 {
			return "", fault.New(fault.Invalid, "The version is not one of PEP 440.")
		}
		for i, p := range parts {
			if strings.Trim(p, "0123456789") == "" {
				p = strings.TrimLeft(p, "0")
				if p == "" {
					p = "0"
				}
				parts[i] = p
			}
		}
		s = public + "+" + strings.Join(parts, ".")
	}
	v, err := version.Parse(s)
	if err != nil {
		return "", fault.New(fault.Invalid, "The version is not one of PEP 440.")
	}
	return v.String(), nil
}

// SameVersion says that two versions are equal as PEP 440 compares them: 1.0 and 1.0.0 are. What is not a version equals nothing.
func SameVersion(a, b string) bool {
	a, errA := NormalizeVersion(a)
	b, errB := NormalizeVersion(b)
	if errA != nil || errB != nil {
		return false
	}
	return version.MustParse(a).Equal(version.MustParse(b))
}
