package main

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestAPIAudiences(t *testing.T) {
	encode := base64.RawURLEncoding.EncodeToString
	jwt := func(payload string) string {
		return encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("s")) + "\n"
	}
	for name, tc := range map[string]struct {
		token string
		want  string
		err   string
	}{
		"list":          {token: jwt(`{"aud":["https://issuer","k3s"]}`), want: "k3s"},
		"one":           {token: jwt(`{"aud":"https://issuer"}`), want: "https://issuer"},
		"certificate":   {want: "https://kubernetes.default.svc"},
		"opaque":        {token: "secret", want: "https://kubernetes.default.svc"},
		"no audience":   {token: jwt(`{}`), err: "has no audience"},
		"no claims":     {token: jwt(`[]`), err: "read service account token"},
		"not base64url": {token: "h.?.s", err: "read service account token"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			require.NoError(t, os.WriteFile(path, []byte(tc.token), 0o600))
			got, err := apiAudiences(&rest.Config{BearerTokenFile: path})
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Contains(t, got, tc.want)
		})
	}
	_, err := apiAudiences(&rest.Config{BearerTokenFile: filepath.Join(t.TempDir(), "none")})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestOwnImage: the image is that of the manager's container, wherever it is in the pod.
func TestOwnImage(t *testing.T) {
	pod := func(containers ...corev1.Container) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "own"}, Spec: corev1.PodSpec{Containers: containers}}
	}
	manager, proxy := corev1.Container{Name: "manager", Image: "registry/blockmover:1"}, corev1.Container{Name: "proxy", Image: "proxy:2"}
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		name string
		want string
		err  string
	}{
		"alone":                {pod: pod(manager), name: "own", want: manager.Image},
		"after a sidecar":      {pod: pod(proxy, manager), name: "own", want: manager.Image},
		"no such container":    {pod: pod(proxy), name: "own", err: "pod velero/own has no container named manager"},
		"no such pod":          {pod: pod(manager), name: "other", err: "get pod velero/other, which $POD_NAME names"},
		"the pod is not named": {pod: pod(manager), err: "set --worker-image, or $POD_NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake.NewClientBuilder().WithObjects(tc.pod).Build()
			got, err := ownImage(t.Context(), c, client.ObjectKey{Namespace: "velero", Name: tc.name})
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}
