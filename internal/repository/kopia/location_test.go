package kopia

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseLocation(t *testing.T) {
	config := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for text, want := range map[string]Location{
		"s3://velero/kopia/shop": {"aws", "velero", "", "shop", config(), ""},
		"s3://velero/a/b/kopia/shop/?endpoint=http://h:7070&region=r": {"aws", "velero", "a/b", "shop", config("s3Url", "http://h:7070", "region", "r"), ""},
		"s3://velero/kopia/shop?endpoint=h:9000&ca=/ca.pem":           {"aws", "velero", "", "shop", config("s3Url", "https://h:9000"), "/ca.pem"},
		"azblob://box/kopia/shop?storageAccount=acc&useAAD=true":      {"azure", "box", "", "shop", config("storageAccount", "acc", "useAAD", "true"), ""},
		"gs://box/p/kopia/shop":                                       {"gcp", "box", "p", "shop", config(), ""},
		"s3://velero/kopia/kopia":                                     {"aws", "velero", "", "kopia", config(), ""},
	} {
		got, err := ParseLocation(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for text, want := range map[string]string{
		"ftp://x/kopia/shop":                      `the scheme is "ftp", want one of file, azblob, gs, s3`,
		"s3:///kopia/shop":                        "want s3://BUCKET/[PREFIX/]kopia/NAMESPACE",
		"s3://key:secret@velero/kopia/shop":       "want s3://BUCKET",
		"s3://velero/shop":                        `its path is "shop", want [PREFIX/]kopia/NAMESPACE`,
		"s3://velero/kopia":                       "want [PREFIX/]kopia/NAMESPACE",
		"s3://velero/restic/shop":                 "want [PREFIX/]kopia/NAMESPACE",
		"s3://velero/kopia/shop?bucket=x":         "parameter bucket is unknown, want one of endpoint, insecureSkipTLSVerify, profile, region, s3Url, ca",
		"s3://velero/kopia/shop?region=a&region=": "parameter region needs one value",
		"gs://box/kopia/shop?region=a":            "parameter region is unknown",
		"s3://velero/kopia/%zz":                   "invalid URL escape",
	} {
		_, err := ParseLocation(text)
		require.ErrorContains(t, err, want, text)
		require.NotContains(t, err.Error(), "secret")
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("s3://velero/a/kopia/shop?endpoint=http://h:7070&region=r")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLocation(text)
		if err != nil {
			return
		}
		if l.Bucket == "" || l.Namespace == "" || l.Provider == "" {
			t.Fatalf("%q is %+v", text, l)
		}
		require.NotContains(t, l.Namespace, "/")
	})
}
