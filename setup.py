"Packaging: everything it says is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

pythons = [f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)]
setup(name=settings['lib_name'], version=settings['version'], description=settings['description'],
      long_description=(here / 'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
      author=settings['author'], license='Apache-2.0', classifiers=pythons, url=settings['git_url'],
      entry_points={'console_scripts': settings['console_scripts'].split()}, keywords=settings['keywords'].split(),
      packages=['cdser', 'cdser.data_manifests'], package_dir={'cdser.data_manifests': 'data_manifests'},
      package_data={'cdser': ['py.typed'], 'cdser.data_manifests': ['*.csv', 'splits/*.csv']},
      python_requires='>=' + settings['min_python'], install_requires=settings['requirements'].split(),
      extras_require={extra: settings[f'{name}_requirements'].split()
                      for extra, name in (('notebooks', 'notebook'), ('datasets', 'datasets'), ('classic', 'classic'), ('benchmarks', 'benchmarks'), ('dev', 'dev'))})
